import os
from pathlib import Path

import numpy as np
import pytest
from conftest import ODDS, write_odds

from adbench.data.odds import Odds
from adbench.data.protocols import semi_supervised
from adbench.types import UserError

COUNTS = {  # at 1 % labels: training normals, test normals, test anomalous, labelled
    "arrhythmia": (231, 155, 27, 2),
    "cardio": (993, 662, 71, 10),
    "satellite": (2639, 1760, 815, 26),
    "satimage-2": (3439, 2293, 29, 34),
    "shuttle": (27351, 18235, 1405, 276),
    "thyroid": (2207, 1472, 38, 22),
}


@pytest.fixture(params=COUNTS)
def table(request, tmp_path):
    write_odds(tmp_path, request.param)
    return request.param, tmp_path


def test_a_published_set_divides_into_the_papers_counts(table):
    name, root = table
    features, rows, anomalous = ODDS[name]
    source = Odds(name, root, 3, features, {"rows": rows, "anomalous": anomalous})
    split = semi_supervised(source.records, np.random.default_rng(0), "semi", labelled_ratio=0.01, holdout=0)
    label = source.records.label
    train, test = label[split.train], label[split.test]
    assert [(train == 0).sum(), (test == 0).sum(), (test == 1).sum(), (split.semi_label == -1).sum()] == list(
        COUNTS[name]
    )
    assert (train == 1).sum() == COUNTS[name][-1]
    assert source.features.shape == (rows, features)
    assert source.features.dtype == np.float64


def small(tmp_path: Path, **arrays) -> Path:
    path = tmp_path / "t.npz"
    np.savez(path, **({"X": np.arange(40.0).reshape(20, 2), "y": np.arange(20) % 4 == 0} | arrays))
    return path


def test_every_seed_draws_its_own_split_and_the_same_seed_the_same(tmp_path):
    path = small(tmp_path)
    split = lambda seed: Odds("t", path, seed, 2).records.split  # noqa: E731
    assert np.array_equal(split(1), split(1))
    assert not np.array_equal(split(1), split(2))


@pytest.mark.parametrize("arrays, features, expected, message", [
    ({}, 3, None, "has 2 features and 3 were expected"),
    ({}, 2, {"rows": 20, "anomalous": 4}, "not the published t: it has .*'anomalous': 5"),
    ({"y": np.arange(20)}, 2, None, "of 0 and 1"),
    ({"y": np.zeros(19)}, 2, None, r"it holds \(20, 2\) and \(19,\)"),
    ({"X": np.full((20, 2), np.nan)}, 2, None, "has 40 missing or infinite values"),
])  # fmt: skip
def test_a_file_that_does_not_fit_is_refused_with_what_it_holds(tmp_path, arrays, features, expected, message):
    with pytest.raises(UserError, match=message):
        Odds("t", small(tmp_path, **arrays), 0, features, expected)


def test_a_missing_file_and_a_file_without_x_are_named(tmp_path):
    with pytest.raises(UserError, match=r"no cardio\.mat or cardio\.npz in"):
        Odds("cardio", tmp_path, 0, 21)
    np.savez(tmp_path / "cardio.npz", features=np.zeros(3))
    with pytest.raises(UserError, match=r"cannot read X and y from .*cardio\.npz"):
        Odds("cardio", tmp_path, 0, 21)


@pytest.mark.parametrize("name", ODDS)
def test_the_real_files_are_the_published_sets(name):
    root = Path(os.environ.get("ADBENCH_DATA", "data")) / "odds"
    if not root.is_dir():
        pytest.skip("no ODDS files below ADBENCH_DATA")
    features, rows, anomalous = ODDS[name]
    source = Odds(name, root, 0, features, {"rows": rows, "anomalous": anomalous})
    assert len(source.records) == rows
    assert int(source.records.label.sum()) == anomalous
