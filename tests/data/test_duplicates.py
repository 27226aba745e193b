import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adbench.data import duplicates
from adbench.data.cache import pixel_hashes
from adbench.data.datamodule import DataModule
from adbench.data.folder import Folder
from adbench.data.odds import Odds
from adbench.data.protocols import one_class
from adbench.data.records import Records, Split
from adbench.types import UserError


def module(source, cache_dir: Path, holdout: float = 0, **options) -> DataModule:
    return DataModule(
        source, partial(one_class, holdout=holdout), image_size=8, batch_size=2, eval_batch_size=8, workers=0, seed=0,
        cache_dir=cache_dir, supervision="unsupervised", **options,
    )  # fmt: skip


def records(label: list[int]) -> Records:
    return Records.of([{"split": "train", "label": one, "path": f"row{i}"} for i, one in enumerate(label)])


#           rows  0  1  2  3  4  5  6  7  8
CONTENT = np.array([5, 5, 6, 7, 7, 5, 8, 8, 7])
SPLIT = Split(np.array([0, 1, 2, 3]), np.zeros(4, np.int8), np.array([4]), np.array([5, 6, 7, 8]))
LABEL = [0, 0, 0, 0, 0, 0, 0, 1, 1]


def test_every_kind_of_copy_is_counted_and_named():
    report = duplicates.found(SPLIT, records(LABEL), CONTENT)
    assert {kind: count for kind, count in report.items() if kind != "examples"} == {
        "test_in_training": 2,  # rows 5 and 8
        "both_labels": 2,  # the contents 7 and 8
        "in_training": 2,  # rows 1 and 4
        "in_test": 1,  # row 7
    }
    assert report["examples"] == {
        "test_in_training": [["row5", "row0"], ["row8", "row3"]],
        "both_labels": [["row8", "row3"], ["row7", "row6"]],
        "in_training": [["row1", "row0"], ["row4", "row3"]],
        "in_test": [["row7", "row6"]],
    }


def test_dropping_leaves_the_test_as_it_is_and_takes_its_rows_and_second_copies_from_the_training():
    left = duplicates.without(SPLIT, CONTENT)
    assert left.train.tolist() == [2] and left.holdout.tolist() == [] and left.test.tolist() == SPLIT.test.tolist()
    report = duplicates.found(left, records(LABEL), CONTENT)
    assert report["test_in_training"] == report["in_training"] == 0


def test_known_anomalies_keep_their_label_when_other_rows_leave():
    split = Split(np.array([0, 1, 2]), np.array([0, 0, -1], np.int8), np.array([], int), np.array([3]))
    left = duplicates.without(split, np.array([1, 2, 3, 1]))
    assert left.train.tolist() == [1, 2] and left.semi_label.tolist() == [0, -1]


def test_equal_numbers_mean_equal_rows():
    x = np.array([[1.0, 2.0], [1.0, 2.5], [1.0, 2.0]])
    ids = duplicates.same(x)
    assert ids[0] == ids[2] != ids[1]


def test_the_hash_is_of_the_pixels_and_the_shape():
    a = np.arange(24, dtype=np.uint8).reshape(1, 2, 4, 3)
    assert (pixel_hashes(a) == pixel_hashes(a.copy())).all()
    assert (pixel_hashes(a) != pixel_hashes(a.reshape(1, 4, 2, 3))).any()
    assert (pixel_hashes(a) != pixel_hashes(255 - a)).any()


@pytest.fixture
def leaky(tree):
    """A training image among the normal test images, in another format, and among the anomalous ones."""
    Image.open(tree / "train/good/000.png").save(tree / "test/good/copy.bmp")
    shutil.copy(tree / "train/good/001.png", tree / "test/dent/000.png")
    return tree


def test_copies_across_splits_are_warned_of_by_name(leaky, tmp_path):
    data = module(Folder(leaky), tmp_path)
    with pytest.warns(UserWarning, match=r"2 test images are also trained on .*test/good/copy\.bmp = train/good/000"):
        data.setup()
    report = data.data_report()["duplicates"]
    assert report["policy"] == "warn" and report["test_in_training"] == 2 and report["both_labels"] == 1
    assert report["dropped"] == 0 and len(data.split.train) == 9


def test_copies_across_splits_are_refused_or_dropped_if_the_user_wants_it(leaky, tmp_path):
    with pytest.raises(UserError, match=r"1 image is both normal and anomalous.*protocol\.duplicates=drop"):
        module(Folder(leaky), tmp_path, duplicates="refuse").setup()
    data = module(Folder(leaky), tmp_path, duplicates="drop")
    with pytest.warns(UserWarning, match="2 training and held-out rows were dropped"):
        data.setup()
    assert len(data.split.train) == 7 and len(data.split.test) == 8
    assert data.data_report()["duplicates"]["dropped"] == 2


def test_dropping_never_leaves_too_few_rows_to_train_on(tmp_path, save):
    for i in range(3):
        for folder in ("train/good", "test/good", "test/dent"):
            save(tmp_path / f"t/{folder}/{i}.png", np.full((8, 8, 3), i + 50 * (folder == "test/dent"), np.uint8))
    with pytest.raises(UserError, match="training needs at least 2 samples; the protocol leaves 0"):
        module(Folder(tmp_path / "t"), tmp_path / "cache", duplicates="drop").setup()


def test_a_policy_that_is_none_is_refused_before_anything_is_read(tree, tmp_path):
    with pytest.raises(UserError, match=r"protocol\.duplicates is warn, refuse or drop, got 'maybe'"):
        module(Folder(tree), tmp_path, duplicates="maybe")


def test_equal_rows_of_a_table_are_counted_without_a_word(tmp_path, recwarn):
    x = np.arange(40.0).reshape(20, 2)
    x[:10] = x[10:]
    np.savez(tmp_path / "t.npz", X=x, y=np.arange(20) % 4 == 0)
    data = module(Odds("t", tmp_path / "t.npz", 0, 2), tmp_path)
    report = data.data_report()["duplicates"]
    assert sum(report[kind] for kind in ("test_in_training", "in_training", "in_test")) > 0
    assert not [warning for warning in recwarn if "more than once" in str(warning.message)]
