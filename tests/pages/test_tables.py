"""Tables of README and docs are what their sources say: runs.csv, published numbers, docstrings, conf."""

import csv
import json
import re
import shutil

import pytest

from adbench.evaluation.metrics import IMAGE_METRICS, PIXEL_METRICS
from adbench.report.published import rows
from pages import DOCS, ROOT, equations, protocols, record, results
from pages.__main__ import TABLES, main, markers, pages, regenerated

PAGES = [page for page in pages() if "<!-- begin " in page.read_text(encoding="utf-8")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_generated_table_is_what_the_command_writes(page):
    text = page.read_text(encoding="utf-8")
    assert markers(text)
    assert regenerated(text) == text, "`make tables` writes it anew"


def test_every_table_stands_on_a_page_and_every_marker_has_its_end():
    texts = [page.read_text(encoding="utf-8") for page in PAGES]
    assert sorted(name for text in texts for name in markers(text)) == sorted(TABLES)
    assert (
        sum(text.count("<!-- begin ") for text in texts)
        == sum(text.count("<!-- end ") for text in texts)
        == len(TABLES)
    )


def test_the_picture_of_the_protocols_is_drawn_from_their_splits():
    assert protocols.PICTURE.read_text(encoding="utf-8") == protocols.picture(), "`make tables` writes it anew"
    found = {(bar.title, bar.values): bar.counts for bar in protocols.bars()}
    # Of 100 normal training rows 5 % are held out; T = 95 (1 + 1/9) / 0.95 = 111.1 train: 0.05 T = 5.6, 95/9 = 10.6
    wanted = {"normal, trains": 95, "known anomaly, trains": 5, "unknown anomaly, trains": 10, "normal, held out": 5,
              "not used": 0, "normal, tested": 40, "anomalous, tested": 25}  # fmt: skip
    assert found["semi_supervised", "labelled_ratio=0.05 pollution_ratio=0.1"] == wanted
    assert found["small_train", "fraction=0.2"]["not used"] == 80
    assert found["contaminated", "ratio=0.1"]["anomalous, tested"] == 36


def test_a_changed_figure_is_found(tmp_path, monkeypatch, capsys):
    page = DOCS / "methods" / "cbigan.md"
    copy = tmp_path / "cbigan.md"
    text = page.read_text(encoding="utf-8")
    copy.write_text(re.sub(r"(\| 300 of 8 \|) 0\.\d+ ", r"\1 0.972 ", text, count=1), encoding="utf-8")
    assert copy.read_text(encoding="utf-8") != text
    monkeypatch.setattr("pages.__main__.pages", lambda: [copy])
    monkeypatch.setattr("pages.__main__.ROOT", tmp_path)
    assert main(["--check"]) == 1
    assert "cbigan.md" in capsys.readouterr().out
    assert main([]) == 0
    assert copy.read_text(encoding="utf-8") == page.read_text(encoding="utf-8")
    assert main(["--check"]) == 0


def test_an_unknown_table_and_a_wrong_end_are_refused():
    with pytest.raises(KeyError):
        regenerated("<!-- begin nothing -->\n<!-- end nothing -->")
    with pytest.raises(ValueError, match="ends with"):
        regenerated("<!-- begin choose -->\n<!-- end methods -->")


def test_no_table_of_figures_is_written_by_hand():
    """Every line of a table with a figure in 0..1 of three digits stands between markers."""
    for page in [ROOT / "README.md", *(DOCS / "methods").glob("*.md"), DOCS / "results" / "measured.md"]:
        text = re.sub(r"<!-- begin .*?<!-- end [^\n]*", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert [
            line for line in text.splitlines() if line.startswith("|") and re.search(r"\b[01]\.\d{3}\b", line)
        ] == []


# -- figures ----------------------------------------------------------------------------------------------------------


def line(**values):
    empty = dict.fromkeys([*results.KEY, "seed", "runs", "image_auroc", "image_auroc_std"], "")
    return empty | {key: str(value) for key, value in values.items()}


def test_a_figure_of_several_runs_is_their_mean_with_the_sample_deviation():
    value = results.value([line(image_auroc=0.5), line(image_auroc=0.7)])
    assert (value.mean, value.n) == (pytest.approx(0.6), 2)
    assert value.std == pytest.approx(0.02**0.5)  # ((0.1)^2 + (0.1)^2) / (2 - 1)
    assert value.text() == "0.600 ± 0.141"


def test_a_recorded_figure_keeps_its_deviation_and_its_number_of_runs():
    value = results.value([line(image_auroc=0.672, image_auroc_std=0.165, runs=2)])
    assert value == (0.672, 0.165, 2)
    assert results.value([line()]) is None


def test_runs_of_two_settings_are_no_figure():
    with pytest.raises(ValueError, match="several figures"):
        results.value([line(image_auroc=0.5), line(image_auroc=0.7, changed="method.alpha=1")])


def test_halves_are_rounded_up():
    assert results.rounded(95.85, 1) == "95.9"
    assert results.rounded(0.12349) == "0.123"


@pytest.mark.parametrize(
    ("method", "data", "printed"),
    [
        ("cbigan/small", "mvtec/screw", "0.58"),
        ("egbad", "mvtec/screw", "0.46"),
        ("igd/small", "mvtec/screw", "0.815"),
        ("pwae/small", "mvtec/screw", "0.92 \\*"),  # breaks a bound
        ("ssae/small", "mvtec/screw", "0.989"),
        ("pca", "mvtec/screw", "–"),
        ("cbigan/small", "textures/brick", "–"),
    ],
)
def test_the_published_figure_is_the_papers(method, data, printed):
    assert results.printed(method, data) == printed


def test_every_row_of_runs_says_where_it_comes_from():
    assert results.lines()
    for one in results.lines():
        assert one["source"] in ("recorded", "run")
        assert one["series"]
        assert one["method"]
        assert int(one["runs"]) >= 1
        assert one["source"] == "recorded" or (one["commit"] and one["cpu"] and one["seed"] and one["runs"] == "1")
        figures = [one[name] for name in results.METRICS if one[name]]
        assert figures
        assert all(0 <= float(figure) <= 1 for figure in figures)
        assert (ROOT / "conf" / "method" / f"{one['method']}.yaml").is_file()


def test_figures_in_the_text_of_the_first_pages_are_those_of_runs_and_papers():
    names = [name for name in results.lines()[0] if re.search(r"_(auroc|pro|std|low|high)$", name)]
    known = {f"{float(one[name]):.3f}" for one in results.lines() for name in names if one[name]}
    known |= {f"{row.number:.3f}" for row in rows()}
    for page in (ROOT / "README.md", DOCS / "start.md", DOCS / "guide" / "data.md"):
        text = re.sub(r"<!-- begin .*?<!-- end [^\n]*", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert [figure for figure in re.findall(r"\b0\.\d{3}\b", text) if figure not in known] == [], page


# -- recording runs ---------------------------------------------------------------------------------------------------


def test_a_recorded_run_takes_the_place_of_its_figure_and_tells_where_it_ran(finished, tmp_path, monkeypatch):
    folder = finished("method=pca", "data=digits")
    table = tmp_path / "runs.csv"
    shutil.copy(results.RUNS, table)
    before = list(csv.DictReader(table.open(encoding="utf-8")))
    path = folder / "metrics.json"  # a smoke run counts in no table
    stored = json.loads(path.read_text(encoding="utf-8"))
    stored["budget"]["name"] = "quick"
    path.write_text(json.dumps(stored), encoding="utf-8")
    command = [str(folder.parent), "--series", "class_sets", "--file", str(table)]
    assert record.main(command) == 0
    after = list(csv.DictReader(table.open(encoding="utf-8")))
    (new,) = [one for one in after if one not in before]
    gone = [one for one in before if one not in after]
    assert [(one["series"], one["method"], one["data"]) for one in gone] in ([("class_sets", "pca", "digits/0")], [])
    assert (new["source"], new["seed"], new["method"], new["data"]) == ("run", "0", "pca", "digits/0")
    assert float(new["image_auroc"]) == pytest.approx(stored["metrics"]["image_auroc"], abs=1e-6)
    assert new["cpu"] == stored["hardware"]["cpu"]
    assert new["threads"] == "1"
    assert new["precision"] == "32-true"
    assert new["commit"].startswith(stored["git"]["commit"][:10])
    assert record.main(command) == 0  # twice is once
    assert list(csv.DictReader(table.open(encoding="utf-8"))) == after


def test_smoke_runs_are_not_recorded(finished, tmp_path, capsys):
    folder = finished("method=pca", "data=digits")
    assert record.main([str(folder.parent), "--series", "class_sets", "--file", str(results.RUNS)]) == 1
    assert "no finished run" in capsys.readouterr().err


# -- equations, presets, metrics --------------------------------------------------------------------------------------


def test_a_first_sentence_ends_at_its_own_full_stop():
    assert equations.sentence("Eq. 3 of Chen et al. 2022. More.") == "Eq. 3 of Chen et al. 2022"
    assert equations.sentence("A (see b. C) and d. Then e.") == "A (see b. C) and d"
    assert equations.sentence("From 1e-4 to 2.5") == "From 1e-4 to 2.5"


def test_an_equations_row_has_what_its_docstring_says():
    table = equations.equation_table("igd")
    assert "| [`gaussian`](../../adbench/losses/igd.py) | l\\_h = 1 - exp(-\\|\\|z - mu\\|\\|^2 / sigma^2)" in table
    assert "Eqs. 5 and 8" in table


def test_every_metric_is_defined():
    text = (DOCS / "guide" / "protocols.md").read_text(encoding="utf-8")
    assert [name for name in (*IMAGE_METRICS, *PIXEL_METRICS) if f"| `{name}` | " not in text] == []
