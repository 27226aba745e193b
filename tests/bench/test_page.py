"""docs/speed.md says what bench.json holds, and bench.json keeps figures of different processors apart."""

import importlib.util
import json
from pathlib import Path

import pytest

SPEC = importlib.util.spec_from_file_location("bench_main", Path(__file__).parents[2] / "bench" / "__main__.py")
bench = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(bench)


def test_the_page_is_the_one_that_bench_json_gives():
    text = bench.PAGE.read_text(encoding="utf-8")
    assert text == bench.with_table(text, json.loads(bench.ROWS.read_text(encoding="utf-8")))


def test_every_row_has_the_keys_that_scripts_read():
    for row in json.loads(bench.ROWS.read_text(encoding="utf-8")):
        assert {"name", "value", "unit", "baseline", "ratio", "note"} <= set(row)


def row(name, value, capability=None):
    known = {} if capability is None else {"capability": capability, "load": 0.5}
    return {"name": name, "value": value, "unit": "s", "baseline": 1, "ratio": value, "note": ""} | known


def test_a_figure_takes_the_place_of_one_of_the_same_processor_alone():
    rows = [row("a", 1, "AVX2"), row("b", 2), row("c", 3, "AVX512+bf16")]
    found = [row("a", 10, "AVX512+bf16"), row("b", 20, "AVX512+bf16"), row("c", 30, "AVX512+bf16")]
    merged = bench.merged(rows, found)
    assert {(one["name"], one["value"]) for one in merged} == {("a", 1), ("a", 10), ("b", 20), ("c", 30)}
    assert len(merged) == 4


def test_a_page_without_the_marks_is_refused():
    with pytest.raises(ValueError, match="has no lines"):
        bench.with_table("# Speed", [])


def test_a_size_on_the_command_line_reaches_the_measure_that_takes_it(monkeypatch, tmp_path, capsys):
    taken = []

    class Measure:
        @staticmethod
        def measure(images=5, large=7):
            taken.append((images, large))
            return [row("a", 1)]

    page = tmp_path / "speed.md"
    page.write_text(f"{bench.BEGIN}\n{bench.END}\n")
    monkeypatch.setattr(bench, "ROWS", tmp_path / "bench.json")
    monkeypatch.setattr(bench, "PAGE", page)
    monkeypatch.setattr(bench.importlib, "import_module", lambda name: Measure)
    assert bench.main(["data_scale", "images=20", "maps=3"]) == 0
    assert taken == [(20, 7)] and json.loads(bench.ROWS.read_text())[0]["name"] == "a"
    assert bench.main(["nothing", "images=20"]) == 1
