"""Tables from the file to the scores: run, predict and the exported graph."""

import csv
import re

import numpy as np
import pytest
import torch
from conftest import metrics_of

import adbench
from adbench.export import main as export
from adbench.predict import main as predict
from adbench.types import UserError

KDE = ("method=kde", "data=tabular", "data.name=t", "data.features=4")


def rows(offset: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(120, 4)), np.arange(120) % 6 == 0
    x[y, 0] += 6
    x[:, 0] += offset
    return x, y


def saved(tmp_path, x, y, name="t"):
    np.savez(tmp_path / f"{name}.npz", X=x, y=y)
    return f"data.file={tmp_path / f'{name}.npz'}"


def scores(path):
    with (path / "scores.csv").open() as file:
        return [float(row["score"]) for row in csv.DictReader(file)]


@pytest.mark.parametrize("method", ["nearest_neighbour", "autoencoder"])
def test_seconds_since_1970_are_scored_as_seconds_since_yesterday(run, tmp_path, method):
    line = (f"method={method}", *KDE[1:], "results=" + str(tmp_path / "results"))
    _, near = run(*line, saved(tmp_path, *rows(), "near"))
    expected = scores(near)
    code, far = run(*line, saved(tmp_path, *rows(1.7e9), "far"), "overwrite=true")
    assert code == 0 and scores(far) == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_predict_and_the_exported_graph_scale_in_float64_too(run, tmp_path):
    x, y = rows(1.7e9)
    _, folder = run(*KDE, saved(tmp_path, x, y))
    with (folder / "scores.csv").open() as file:
        tested = {int(row["path"].rsplit("/", 1)[1]): float(row["score"]) for row in csv.DictReader(file)}
    lines = "\n".join(",".join(map(repr, row)) for row in x.tolist())
    (tmp_path / "t.csv").write_text("a,b,c,d\n" + lines)
    np.save(tmp_path / "t.npy", x)
    assert export([str(folder), "--out", str(tmp_path / "m.onnx")]) == 0
    for number, line in enumerate([
        [str(folder), str(tmp_path / "t.csv")],
        [str(folder), str(tmp_path / "t.npy")],
        [str(folder), str(tmp_path / "t.npz")],
        ["--model", str(tmp_path / "m.onnx"), str(tmp_path / "t.csv")],
    ]):  # fmt: skip
        out = tmp_path / f"out{number}"
        assert predict([*line, "--out", str(out), "--false-alarm-rate", "0.4"]) == 0
        found = scores(out)
        assert len(found) == 120
        assert [found[row] for row in tested] == pytest.approx(list(tested.values()), rel=1e-4)
    detector = adbench.load(folder)
    assert detector.score(torch.from_numpy(x)).image.tolist() == pytest.approx(found, rel=1e-4)


@pytest.mark.parametrize("method", ["kde", "deep_svdd", "esad"])
def test_a_row_too_large_to_be_scored_is_refused_before_the_training(run, tmp_path, method, capsys, caplog):
    x, y = rows()
    x[~y, 1] = np.where(np.arange((~y).sum()) == 40, 3e38, x[~y, 1])
    x[y, 1] = 2e38
    code, folder = run(f"method={method}", *KDE[1:], saved(tmp_path, x, y))
    assert code == 1
    said = caplog.text + capsys.readouterr().out
    assert "column 1 (counted from 0) holds" in said and "would overflow" in said
    assert not (folder / "scores.csv").exists() and not list(folder.glob("checkpoints/*"))


def test_a_value_that_is_no_number_in_the_settings_stops_no_record(run, tmp_path):
    code, folder = run("method=brightness", "data=digits", "protocol=contaminated", "protocol.ratio=nan")
    assert code == 1
    record = metrics_of(folder) if (folder / "metrics.json").exists() else {"status": "failed"}
    assert record["status"] == "failed"


def test_a_csv_file_with_a_column_of_labels_trains(run, tmp_path):
    x, y = rows()
    lines = [f"{','.join(map(repr, row))},{int(one)}" for row, one in zip(x.tolist(), y, strict=True)]
    (tmp_path / "t.csv").write_text("a;b;c;d;outlier\n".replace(";", ",") + "\n".join(lines))
    code, folder = run(*KDE, f"data.file={tmp_path / 't.csv'}", "data.label=outlier")
    assert code == 0 and metrics_of(folder)["metrics"]["image_auroc"] > 0.9
    _, arrays = run(*KDE, saved(tmp_path, x, y), "results=" + str(tmp_path / "others"))
    assert scores(folder) == pytest.approx(scores(arrays), rel=1e-6)


@pytest.fixture
def trained(run, tmp_path):
    return run(*KDE, saved(tmp_path, *rows()))[1]


@pytest.mark.parametrize("name, content, message", [
    ("t.csv", "0.3,0.8,NA,1\n1,2,3,4\n", r"t\.csv, line 1, column 3: 'NA'"),
    ("t.csv", "0.3,0.8,0.1\n1,2,3\n", r"takes rows of 4 numbers, and these have 3"),
])  # fmt: skip
def test_a_wrong_table_is_refused_whole_and_before_any_other_is_scored(
    trained, tmp_path, capsys, name, content, message
):
    np.save(tmp_path / "good.npy", rows()[0])
    (tmp_path / name).write_text(content)
    out = tmp_path / "out"
    assert predict([str(trained), str(tmp_path / "good.npy"), str(tmp_path / name), "--out", str(out)]) == 1
    error = capsys.readouterr().err
    assert re.search(message, error)
    assert not (out / "scores.csv").exists()


@pytest.mark.parametrize("array, message", [
    (np.array([["a", "b", "c", "d"]]), "an array of text"),
    (np.array([[1, None, 2, 3]], dtype=object), "cannot read .* as an array of numbers"),
    (np.array([[1.0, np.nan, 2, 3]]), "missing or infinite values, the first in row 0, column 1"),
])  # fmt: skip
def test_rows_that_are_no_numbers_are_refused_by_predict_and_by_the_detector(trained, tmp_path, capsys, array, message):
    np.save(tmp_path / "x.npy", array)
    assert predict([str(trained), str(tmp_path / "x.npy"), "--out", str(tmp_path / "out")]) == 1
    assert re.search(message, capsys.readouterr().err)
    with pytest.raises(UserError):
        adbench.load(trained).score(array)
