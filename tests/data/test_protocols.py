import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adbench.data.protocols import checked, hold_out, one_class
from adbench.data.records import Records, Split
from adbench.types import UserError


def records(train_labels: list[int], test_labels: list[int]) -> Records:
    rows = [
        {"split": split, "label": label, "defect": "bad" if label else "good", "path": f"{split}/{i}"}
        for split, labels in (("train", train_labels), ("test", test_labels))
        for i, label in enumerate(labels)
    ]
    return Records.of(rows)


LABELS = st.lists(st.integers(0, 1), max_size=80)


@settings(deadline=None)
@given(train=LABELS, test=LABELS.filter(len), share=st.floats(0, 0.9), seed=st.integers(0, 2**32))
def test_one_class_uses_every_normal_training_row_once_and_no_anomalous_one(train, test, share, seed):
    table = records(train, test)
    rng = np.random.default_rng(seed)
    normal = train.count(0)
    held = max(3, round(share * normal)) if share > 0 else 0
    if normal - held < 2:
        with pytest.raises(UserError, match="at least 2 normal"):
            one_class(table, rng, "unsupervised", holdout=share)
        return
    split = checked(one_class(table, rng, "unsupervised", holdout=share), table)
    assert len(split.holdout) == held
    trained = np.sort(np.concatenate([split.train, split.holdout]))
    assert trained.tolist() == [i for i, label in enumerate(train) if label == 0]
    assert split.test.tolist() == list(range(len(train), len(train) + len(test)))
    assert not split.semi_label.any()


def test_five_percent_are_held_out_but_at_least_three():
    assert len(hold_out(np.arange(200), np.random.default_rng(0), 0.05)[1]) == 10
    assert len(hold_out(np.arange(20), np.random.default_rng(0), 0.05)[1]) == 3


def test_a_holdout_of_zero_keeps_no_row_back():
    train, kept = hold_out(np.arange(5), np.random.default_rng(0), 0.0)
    assert train.tolist() == [0, 1, 2, 3, 4] and len(kept) == 0


def test_the_split_is_the_generators_and_another_seed_gives_another_one():
    table = records([0] * 60, [0, 1])
    splits = [one_class(table, np.random.default_rng(seed), "semi").holdout.tolist() for seed in (0, 0, 1)]
    assert splits[0] == splits[1] != splits[2]


def test_an_impossible_share_is_refused():
    with pytest.raises(UserError, match=r"\[0, 1\), got 1.5"):
        hold_out(np.arange(9), np.random.default_rng(0), 1.5)


def test_too_few_normal_rows_name_the_counts_and_the_way_out():
    with pytest.raises(UserError, match=r"there are 4 and 3 of them are held out.*protocol.holdout=0"):
        one_class(records([0] * 4, [0]), np.random.default_rng(0), "unsupervised")


def split(train, holdout, test):
    as_rows = [np.array(rows, dtype=np.int64) for rows in (train, holdout, test)]
    return Split(as_rows[0], np.zeros(len(train), np.int8), as_rows[1], as_rows[2])


@pytest.mark.parametrize("roles", [([0, 1, 1], [2], [3]), ([0, 1], [1], [3]), ([0, 1], [2], [1]), ([0, 1], [3], [3])])
def test_a_row_with_two_roles_is_refused(roles):
    with pytest.raises(ValueError, match="two roles"):
        checked(split(*roles), records([0, 0, 0], [0]))


def test_an_anomalous_row_is_never_held_out():
    with pytest.raises(ValueError, match="anomalous"):
        checked(split([0, 1], [2], [3]), records([0, 0, 1], [0]))


def test_a_data_set_without_test_images_is_refused():
    with pytest.raises(UserError, match="no test image"):
        checked(split([0, 1], [], []), records([0, 0], []))


def test_columns_of_unequal_length_are_refused():
    column = np.array(["a"])
    with pytest.raises(ValueError, match="differ in length"):
        Records(column, np.zeros(2, np.int8), column, column, column, column)
