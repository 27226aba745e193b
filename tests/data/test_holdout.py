"""How many rows are held out, and which fold each lies in."""

from functools import partial

import numpy as np
import pytest

from adbench.data.datamodule import DataModule
from adbench.data.folder import Folder
from adbench.data.protocols import FOLDS, HoldOut, contaminated, hold_out, one_class
from adbench.evaluation.thresholds import needed
from adbench.types import UserError


@pytest.mark.parametrize("n", [3, 10, 37, 38, 48, 60, 400, 2000])
def test_as_many_rows_are_held_out_as_a_valid_threshold_needs_where_as_many_are_left(n):
    rows = HoldOut("auto", needed(0.95)).rows(n)
    if n >= 38:
        assert rows == max(19, round(0.05 * n))
        assert np.ceil((rows + 1) * 0.95) <= rows
    else:
        assert rows == max(1, n // 3)
        assert n - rows >= max(2, rows)


@pytest.mark.parametrize(("n", "folds"), [(2, 2), (3, 3), (48, FOLDS), (94, FOLDS), (95, 0), (5000, 0)])
def test_few_rows_are_cross_validated_where_a_fit_costs_little(n, folds):
    rule = HoldOut("auto", 19, refits=True)
    assert rule.folds(n) == folds
    assert (rule.rows(n) == 0) == bool(folds)
    assert HoldOut("auto", 19).folds(n) == 0
    assert HoldOut("cv", 19, refits=True).folds(n) == min(FOLDS, n)


def test_a_cross_validation_of_what_trains_by_steps_is_refused_with_what_to_take():
    with pytest.raises(UserError, match=r"protocol\.holdout=cv .* protocol\.holdout=auto or a share"):
        HoldOut("cv")
    with pytest.raises(UserError, match="a share in"):
        HoldOut("most")


def test_whether_rows_are_held_out_changes_no_other_draw_of_the_protocol():
    from adbench.data.records import Records

    rows = [{"split": "train", "label": 0, "defect": "good", "path": f"g{i}"} for i in range(40)]
    rows += [{"split": "test", "label": 1, "defect": "bad", "path": f"b{i}"} for i in range(20)]
    records = Records.of(rows)
    moved = [
        contaminated(records, np.random.default_rng(5), "unsupervised", ratio=0.3, holdout=holdout).test.tolist()
        for holdout in (0.05, 0.2, HoldOut("auto"), HoldOut("cv", refits=True))
    ]
    assert all(one == moved[0] for one in moved)


def test_a_word_alone_is_the_rule_of_a_method_that_nothing_is_known_of():
    train, kept = hold_out(np.arange(60), np.random.default_rng(0), "auto")
    assert (len(train), len(kept)) == (41, 19)


def module(root, tmp_path, **options):
    rule = HoldOut("auto", 19, refits=True)
    values = {"image_size": 8, "batch_size": 2, "eval_batch_size": 4, "workers": 0, "seed": 0, "holdout": rule}
    return DataModule(Folder(root), partial(one_class, holdout=rule), cache_dir=tmp_path / "cache",
                      supervision="unsupervised", **values | options)  # fmt: skip


def test_folds_hold_every_training_row_once_and_equal_images_together(tree, tmp_path, save):
    for i in range(6):
        save(tree / f"train/good/copy{i}.png", np.full((24, 24, 3), 7, np.uint8))
    with pytest.warns(UserWarning, match="there more than once"):
        data = module(tree, tmp_path)
        data.setup()
    assert len(data.split.holdout) == 0
    folds = data.folds
    assert len(folds) == FOLDS
    assert sorted(np.concatenate(folds).tolist()) == data.split.train.tolist()
    names = [{path for path in data.records.path[fold].tolist() if "copy" in path} for fold in folds]
    assert sorted(map(len, names)) == [0, 0, 0, 0, 6]
    assert [fold.tolist() for fold in module(tree, tmp_path).folds] == [fold.tolist() for fold in folds]
    assert [fold.tolist() for fold in module(tree, tmp_path, seed=1).folds] != [fold.tolist() for fold in folds]


def test_the_table_tells_what_each_folder_is_taken_as_and_used_for(tmp_path, save):
    rng = np.random.default_rng(0)
    for name in (*(f"ok/{i}" for i in range(10)), "nok/dent/1", "nok/dent/2", "raw/1"):
        save(tmp_path / f"parts/{name}.png", rng.integers(0, 255, (9, 9, 3), dtype=np.uint8))
    (tmp_path / "parts/ok/notes.txt").write_text("x")
    table = module(tmp_path / "parts", tmp_path).overview()
    assert [(row["folder"], row["images"], row["taken_as"], row["train"], row["test"]) for row in table] == [
        ("ok", 10, "normal", 8, 2),
        ("nok/dent", 2, "anomalous: dent", 0, 2),
        ("ok", 1, "ignored: no image by its name (.txt)", 0, 0),
        ("raw", 1, "ignored: in a folder whose name says nothing of its images", 0, 0),
    ]
    share = module(tmp_path / "parts", tmp_path, holdout=None)
    share.protocol = partial(one_class, holdout=0.4)
    assert share.overview()[0]["holdout"] == 3
    assert share.folds == []
