"""PyOD's detectors one by one: what docs/adapters.md says of each is what is measured here.

    python tests/adapters/test_pyod.py
    python tests/adapters/test_pyod.py --cost

The first measures all and writes the page's table anew; the second does so with what a row costs that is scored alone.
"""

from __future__ import annotations

import csv
import importlib.util
import inspect
import json
import re
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from adbench.detection.graph import save_graph
from adbench.experiment.groups import conf_dir
from adbench.methods import pyod_detector
from adbench.methods.pyod_detector import DETECTORS, PyOD
from adbench.types import Batch, UserError

pytestmark = [
    pytest.mark.adapters,
    pytest.mark.skipif(importlib.util.find_spec("pyod") is None, reason="PyOD is not installed"),
]
PAGE = Path(__file__).parents[2] / "docs" / "adapters.md"
BEGIN, END = "<!-- PyOD's detectors: python tests/adapters/test_pyod.py -->", "<!-- end -->"
COST, END_OF_COST = "<!-- cost: python tests/adapters/test_pyod.py --cost -->", "<!-- end of cost -->"
HEADER = ("detector", "fits and scores", "rows together", "by default", "reload", "draws at random", "learns from",
          "graph", "needs")  # fmt: skip
# Options that make a network's training short, or that a small table needs.
SMOKE = {
    "AE1SVM": {"epochs": 2}, "ALAD": {"epochs": 3}, "AnoGAN": {"epochs": 2, "epochs_query": 2},
    "AutoEncoder": {"epoch_num": 2}, "DeepSVDD": {"epochs": 3}, "DIF": {"n_ensemble": 4}, "LUNAR": {"n_epochs": 5},
    "MO_GAAL": {"stop_epochs": 2, "k": 3}, "SO_GAAL": {"stop_epochs": 2}, "VAE": {"epoch_num": 2},
    "DevNet": {"epochs": 5}, "RGraph": {"maxiter_lasso": 100},
    "SUOD": {"base_estimators": [{"detector": "LOF"}, {"detector": "COPOD"}]},
}  # fmt: skip
TRAIN, TEST, ANOMALOUS = 80, 9, 12


def options_of(name: str) -> dict[str, object]:
    """The options that conf/method/pyod/NAME.yaml has."""
    values = yaml.safe_load((conf_dir() / "method" / "pyod" / f"{name.lower()}.yaml").read_text(encoding="utf-8"))
    assert values["detector"] == name
    return values.get("options", {})


def table(columns: int, train: int = TRAIN) -> tuple[torch.Tensor, torch.Tensor]:
    """Training rows, the last ones anomalous, and rows to score, every third anomalous; none twice."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    rows = torch.randn(train + TEST, columns, generator=generator, dtype=torch.float64) @ mix
    rows[train - ANOMALOUS : train] += 6
    rows[train::3] -= 6
    return rows[:train], rows[train:]


def made(name: str, columns: int, seed: int = 0, alone: bool | None = None) -> PyOD:
    method = PyOD("tabular", columns, "min_max", None, name, {**options_of(name), **SMOKE.get(name, {})}, alone)
    method.seed = seed
    return method.eval()


def fitted(method: PyOD, rows: torch.Tensor, known: int = ANOMALOUS) -> PyOD:
    """Prepared as a run does; the last `known` rows are known as anomalous."""
    semi = torch.zeros(len(rows), dtype=torch.int64)
    semi[len(rows) - known :] = -1
    pyod_detector._LATEST.clear()  # another process has fitted nothing
    method.ensure_prepared([Batch(rows, semi, semi, semi, semi)])
    return method


def scores(method: PyOD, rows: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return method.score(rows).image


def measured(name: str) -> dict[str, str]:
    """The page's row of a detector."""
    columns = 1 if name == "MAD" else 4
    training, rows = table(columns)
    method = fitted(made(name, columns), training)
    together = scores(method, rows)
    assert together.shape == (TEST,) and together.std() > 0
    row = {"detector": name, "fits and scores": "yes" if columns > 1 else "one column alone"}
    row["rows together"] = rows_together(name, training, rows)
    by_default = "alone" if method.alone else "transductive"
    row["by default"] = "–" if row["rows together"] == "equal" else by_default
    assert method.transductive == (row["by default"] == "transductive")
    pyod_detector._LATEST.clear()
    again = made(name, columns)
    again.load_state_dict({key: value.clone() for key, value in method.state_dict().items()})
    row["reload"] = "equal" if torch.equal(scores(again, rows), together) else "differs"
    other = scores(fitted(made(name, columns, seed=1), training), rows)
    row["draws at random"] = "no" if torch.equal(other, together) else "yes"
    fewer = scores(fitted(made(name, columns), training, ANOMALOUS // 2), rows)
    row["learns from"] = "rows" if torch.equal(fewer, together) else "rows and known anomalies"
    try:
        save_graph(method, {"method": name, "input": {}}, "onnx", Path("never"))
        row["graph"] = "yes"
    except UserError as error:
        assert "outside torch" in str(error)
        row["graph"] = "no"
    return row | {"needs": DETECTORS[name].needs or "–"}


def rows_together(name: str, training: torch.Tensor, rows: torch.Tensor) -> str:
    """Whether rows that are scored in one call have the scores that they have in other company."""
    method = fitted(made(name, rows.shape[1], alone=False), training)
    whole, parts = scores(method, rows), torch.cat([scores(method, part) for part in rows.split([1, 5, TEST - 6])])
    equal = torch.allclose(whole, parts, rtol=1e-4, atol=1e-6 * float(whole.abs().max()))
    assert torch.equal(scores(method, rows), whole), "scoring changes the detector"
    if not equal:
        method = fitted(made(name, rows.shape[1], alone=True), training)
        whole, first = scores(method, rows[:3]), scores(method, rows[:1])
        assert torch.equal(whole[:1], first), "alone=true does not score a row by itself"
        assert whole.std() > 0, "rows that are scored by themselves are all alike"
    return "equal" if equal else "differ"


def page_rows() -> dict[str, dict[str, str]]:
    """The table that the page has, by detector."""
    text = PAGE.read_text(encoding="utf-8")
    inside = text[text.index(BEGIN) + len(BEGIN) : text.index(END)]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in inside.strip().splitlines()]
    assert tuple(cells[0]) == HEADER
    names = {linked(name): name for name in DETECTORS}
    return {names[row[0]]: dict(zip(HEADER, row, strict=True)) for row in cells[2:]}


def linked(name: str) -> str:
    return f"[`pyod/{name.lower()}`](../conf/method/pyod/{name.lower()}.yaml)"


def test_the_page_has_every_detector():
    assert list(page_rows()) == list(DETECTORS)


@pytest.mark.parametrize("name", DETECTORS)
def test_a_detector_does_what_the_page_says(name):
    needs = DETECTORS[name].needs
    if needs and importlib.util.find_spec(needs) is None:
        pytest.skip(f"{needs} is not installed")
    found = measured(name)
    assert found | {"detector": linked(name)} == page_rows()[name]
    assert (found["rows together"] == "equal") == (DETECTORS[name].rows == "apart")
    assert found["reload"] == "equal"
    assert (found["learns from"] != "rows") == DETECTORS[name].labels


@pytest.mark.parametrize("name", DETECTORS)
def test_the_options_of_a_preset_are_pyod_s_defaults(name):
    if (needs := DETECTORS[name].needs) and importlib.util.find_spec(needs) is None:
        pytest.skip(f"{needs} is not installed")
    parameters = inspect.signature(made(name, 4)._maker.__init__).parameters
    for key, value in options_of(name).items():
        default = parameters[key].default
        if default is not inspect.Parameter.empty:
            assert value == (list(default) if isinstance(default, tuple) else default), key


def test_every_detector_of_pyod_that_takes_tables_has_a_preset():
    import pyod

    found = set()
    for file in sorted(Path(pyod.__file__).parent.glob("models/*.py")):
        if not file.name.startswith(("_", "base", "ts_", "pyg_", "audio", "embedding")):
            found |= set(re.findall(r"^class (\w+)\(Base\w*Detector", file.read_text(encoding="utf-8"), re.M))
    assert found == set(DETECTORS)


def test_pyod_s_devnet_still_swaps_the_arguments_of_its_loss():
    from pyod.models import devnet

    assert list(inspect.signature(devnet.deviation_loss).parameters) == ["y_true", "y_pred"]
    assert "deviation_loss(outputs, labels)" in inspect.getsource(devnet.DevNet.fit), "DETECTORS' caveat is past"


def test_a_process_fits_a_loaded_run_once(monkeypatch):
    training, rows = table(4)
    first = fitted(made("KNN", 4), training)
    expected = scores(first, rows)
    monkeypatch.setattr(PyOD, "_fit", lambda *_: pytest.fail("fitted again"))
    again = made("KNN", 4)
    again.load_state_dict(first.state_dict())
    assert torch.equal(scores(again, rows), expected)


def test_a_score_that_is_no_number_is_told_with_the_detector_s_name():
    training, rows = table(4)
    method = fitted(made("ABOD", 4), torch.cat([training, rows[:1].expand(20, -1)]))
    with pytest.raises(UserError, match=r"PyOD's ABOD gives 1 of 9 rows a score that is no finite number"):
        scores(method, rows)


def test_rows_that_a_detector_refuses_are_told_with_its_name():
    with pytest.raises(UserError, match="PyOD's MAD cannot be fitted to 80 training rows of 4 numbers"):
        fitted(made("MAD", 4), table(4)[0])


# -- runs -------------------------------------------------------------------------------------------------------------

TABLE = ("data=tabular", "data.name=t", "data.features=4", "trainer.threads=1")


@pytest.fixture
def saved(tmp_path):
    """A table on disk, and its rows as CSV."""
    rows = np.concatenate([part.numpy() for part in table(4)])
    y = np.arange(len(rows)) % 5 == 0
    rows[y] += 5
    np.savez(tmp_path / "t.npz", X=rows, y=y)
    (tmp_path / "t.csv").write_text("a,b,c,d\n" + "\n".join(",".join(map(repr, row)) for row in rows.tolist()))
    return tmp_path


def by_row(file: Path, column: str) -> dict[str, float]:
    with file.open() as lines:
        return {row[column].rsplit("/", 1)[-1]: float(row["score"]) for row in csv.DictReader(lines)}


@pytest.mark.parametrize(("line", "transductive"), [(("method=pyod/ecod",), False), (("method=pyod/sos",), True),
    (("method=pyod", "method.detector=ECOD", "method.alone=false"), True),
    (("method=pyod/devnet", "protocol=semi_supervised", "protocol.labelled_ratio=0.1"), False)])  # fmt: skip
def test_a_run_on_a_table_is_evaluated_predicted_and_released(run, saved, line, transductive):
    from adbench.evaluate import main as evaluate
    from adbench.export import main as export
    from adbench.predict import main as predict

    code, folder = run(*line, *TABLE, f"data.file={saved / 't.npz'}")
    assert code == 0
    record = json.loads((folder / "metrics.json").read_text())
    assert record.get("transductive", False) is transductive
    assert record["versions"]["pyod"]
    pyod_detector._LATEST.clear()
    assert evaluate([str(folder)]) == 0
    (again,) = (folder / "evaluations").rglob("metrics.json")
    assert json.loads(again.read_text())["metrics"] == record["metrics"]
    assert json.loads(again.read_text()).get("transductive", False) is transductive
    assert predict([str(folder), str(saved / "t.csv"), "--out", str(saved / "out")]) == 0
    assert export([str(folder), "--out", str(saved / "m.onnx")]) == 1
    assert export([str(folder), "--format", "safetensors", "--out", str(saved / "m.safetensors")]) == 0
    pyod_detector._LATEST.clear()
    assert predict(["--model", str(saved / "m.safetensors"), str(saved / "t.csv"), "--out", str(saved / "m")]) == 0
    (found,), (released,) = (list((saved / name).rglob("scores.csv")) for name in ("out", "m"))
    assert found.read_text() == released.read_text()


def cost() -> None:
    """Write the milliseconds of a row that is scored by itself, with PyOD's options, after 300 rows of 21 columns: the
    least of as many as two seconds have."""
    training, rows = table(21, train=300)
    lines = ["| detector | ms a row | by default |", "|---|---|---|"]
    for name in (name for name, traits in DETECTORS.items() if traits.rows != "apart"):
        method = fitted(PyOD("tabular", 21, "min_max", None, name, options_of(name), alone=True).eval(), training)
        spent = [milliseconds(method, rows[:1])]  # what is compiled, is compiled now
        while sum(spent) < 2000:
            spent.append(milliseconds(method, rows[len(spent) % TEST, None]))
        three_digits = float(f"{min(spent):.3g}")
        lines.append(f"| {name} | {three_digits:,g} | {'alone' if DETECTORS[name].alone else 'transductive'} |")
        print(lines[-1], flush=True)
    text = PAGE.read_text(encoding="utf-8")
    before, after = text[: text.index(COST) + len(COST)], text[text.index(END_OF_COST) :]
    PAGE.write_text("\n".join([before, "", *lines, "", after]), encoding="utf-8")


def milliseconds(method: PyOD, rows: torch.Tensor) -> float:
    """The processor's time for a call, which other programs of the machine do not lengthen as they do the clock's."""
    began = time.process_time()
    scores(method, rows)
    return 1e3 * (time.process_time() - began)


def write() -> None:
    """Measure every detector and put the table into the page."""
    rows = []
    for name in DETECTORS:
        row = measured(name)
        print(row, flush=True)
        rows.append("| " + " | ".join([linked(name), *list(row.values())[1:]]) + " |")
    head = ["| " + " | ".join(HEADER) + " |", "|" + "---|" * len(HEADER)]
    text = PAGE.read_text(encoding="utf-8")
    before, after = text[: text.index(BEGIN) + len(BEGIN)], text[text.index(END) :]
    PAGE.write_text("\n".join([before, "", *head, *rows, "", after]), encoding="utf-8")


if __name__ == "__main__":
    cost() if "--cost" in sys.argv else write()
