"""small_train, contaminated and semi_supervised: who gets which role, whatever the data set."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adbench.data.protocols import (
    checked,
    contaminated,
    one_class,
    semi_supervised,
    semi_supervised_counts,
    small_train,
)
from adbench.data.records import Records
from adbench.types import UserError


def table(train: dict[str, int], test: dict[str, int], normal: str = "0") -> Records:
    """Records of so many rows of each class, shuffled, so that no protocol can lean on an order."""
    rows = [
        {"split": split, "label": int(klass != normal), "klass": klass, "defect": "good" if klass == normal else klass}
        for split, counts in (("train", train), ("test", test))
        for klass, n in counts.items()
        for _ in range(n)
    ]
    order = np.random.default_rng(5).permutation(len(rows))
    return Records.of([rows[i] | {"path": f"{i}"} for i in order])


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


CLASSES = table({"0": 600, "1": 500, "2": 400, "3": 300}, {"0": 50, "1": 40, "2": 30, "3": 30})

sizes = st.integers(1, 60)
tables = st.builds(
    lambda n, a, b, c, d, e: table({"0": n, "1": a, "2": b}, {"0": c, "1": d, "2": e}),
    st.integers(10, 120), sizes, sizes, sizes, sizes, sizes,
)  # fmt: skip
ratios = st.floats(0, 0.99, allow_subnormal=False)
holdouts = st.sampled_from([0, 0.05, 0.3])


def is_whole(split, records):
    """No row has two roles, test rows come from the test split, labels fit, everything held out is normal."""
    checked(split, records)
    assert set(split.test) <= set(np.flatnonzero(records.split == "test"))
    assert (records.label[split.train[split.semi_label == -1]] == 1).all()
    assert (records.label[split.train[split.semi_label == 1]] == 0).all()
    assert (records.split[split.holdout] == "train").all()


@settings(max_examples=150, deadline=None)
@given(tables, st.integers(0, 3), ratios, ratios, ratios, st.integers(0, 3), holdouts)
def test_semi_supervised_gives_exact_counts_or_refuses(records, seed, labelled, polluted, known, kinds, holdout):
    options = {
        "labelled_ratio": labelled,
        "pollution_ratio": polluted,
        "labelled_normal_ratio": known,
        "holdout": holdout,
    }
    try:
        split = semi_supervised(records, rng(seed), "semi", labelled_classes=kinds, **options)
    except UserError:
        return
    is_whole(split, records)
    label = records.label[split.train]
    normal, m = int((label == 0).sum()), int((split.semi_label == -1).sum())
    hidden = int(((label == 1) & (split.semi_label == 0)).sum())
    total, unlabelled = len(split.train), int((split.semi_label == 0).sum())
    effective = labelled if kinds else 0.0
    assert (int((split.semi_label == 1).sum()), m, hidden) == semi_supervised_counts(normal, effective, polluted, known)
    assert abs(m - effective * total) <= 1.01 / (1 - effective)  # the others are cut to integers before T is counted
    assert abs(hidden - polluted * unlabelled) <= 1.01
    assert len(set(records.defect[split.train[split.semi_label == -1]])) <= kinds
    assert normal + len(split.holdout) == int(((records.split == "train") & (records.label == 0)).sum())
    assert len(split.test) == int((records.split == "test").sum())


@settings(max_examples=60, deadline=None)
@given(tables, st.integers(0, 3), st.floats(0, 0.4), st.floats(0, 0.4), holdouts)
def test_anomalies_of_the_test_rows_train_or_are_tested_and_never_both(records, seed, labelled, polluted, holdout):
    options = {"labelled_ratio": labelled, "pollution_ratio": polluted, "labelled_classes": "all", "holdout": holdout}
    try:
        split = semi_supervised(records, rng(seed), "semi", anomalies="test", **options)
    except UserError:
        return
    is_whole(split, records)
    moved = split.train[records.label[split.train] == 1]
    assert (records.split[moved] == "test").all()
    assert set(split.test) | set(moved) == set(np.flatnonzero(records.split == "test"))
    assert records.label[split.test].any()


def test_auto_takes_the_training_rows_where_any_is_anomalous_and_else_the_test_rows():
    with_some = semi_supervised(CLASSES, rng(), "semi", labelled_ratio=0.1)
    assert np.array_equal(
        with_some.train, semi_supervised(CLASSES, rng(), "semi", labelled_ratio=0.1, anomalies="train").train
    )
    records = table({"0": 90}, {"0": 10, "1": 20})
    without = semi_supervised(records, rng(), "semi", labelled_ratio=0.1, holdout=0)
    assert int((without.semi_label == -1).sum()) == 10
    assert records.label[without.test].sum() == 10
    with pytest.raises(UserError, match="no anomalous training rows: use protocol=one_class"):
        semi_supervised(records, rng(), "semi", labelled_ratio=0.1, anomalies="train")
    with pytest.raises(UserError, match="anomalies is auto, train or test, got validation"):
        semi_supervised(records, rng(), "semi", labelled_ratio=0.1, anomalies="validation")


@settings(max_examples=60, deadline=None)
@given(tables, st.integers(0, 3), ratios, holdouts)
def test_contaminated_moves_exactly_its_share_of_the_anomalous_test_rows_or_refuses(records, seed, ratio, holdout):
    there = int(((records.split == "test") & (records.label == 1)).sum())
    try:
        split = contaminated(records, rng(seed), "unsupervised", ratio=ratio, holdout=holdout)
    except UserError:
        assert ratio > 0
        assert round(ratio * there) in (0, there)
        return
    is_whole(split, records)
    moved = split.train[records.label[split.train] == 1]
    assert len(moved) == round(ratio * there)
    assert (records.split[moved] == "test").all()
    assert (split.semi_label == 0).all()
    assert set(split.test) | set(moved) == set(np.flatnonzero(records.split == "test"))
    assert records.label[split.test].any()


@settings(max_examples=60, deadline=None)
@given(tables, st.integers(0, 3), st.floats(0.01, 1), holdouts)
def test_small_train_keeps_exactly_its_share_of_the_normal_rows_or_refuses(records, seed, fraction, holdout):
    normal = int(((records.split == "train") & (records.label == 0)).sum())
    try:
        split = small_train(records, rng(seed), "unsupervised", fraction=fraction, holdout=holdout)
    except UserError:
        assert round(fraction * normal) < 2 + 3
        return
    is_whole(split, records)
    assert len(split.train) + len(split.holdout) == round(fraction * normal)
    assert not records.label[split.train].any()
    assert (records.split[split.train] == "train").all()


@pytest.mark.parametrize("ratio, count", [(0.01, 60), (0.05, 315), (0.1, 666), (0.2, 1500)])
def test_labelled_counts_of_the_published_sampler_for_6000_normal_rows(ratio, count):
    assert semi_supervised_counts(6000, ratio, 0.0) == (0, count, 0)
    assert semi_supervised_counts(6000, 0.0, ratio) == (0, 0, count)


@pytest.mark.parametrize("normal, ratio, known, unknown", [
    (6000, 0.01, 318, 60), (6000, 0.05, 332, 315), (6000, 0.1, 350, 666), (6000, 0.2, 394, 1500),
    (5000, 0.01, 265, 50), (5000, 0.05, 277, 263), (5000, 0.1, 292, 555), (5000, 0.2, 328, 1250),
])  # fmt: skip
def test_counts_with_pollution_at_one_known_anomaly_in_twenty(normal, ratio, known, unknown):
    assert semi_supervised_counts(normal, 0.05, ratio) == (0, known, unknown)


@pytest.mark.parametrize("normal, count", [(231, 2), (993, 10), (2639, 26), (3439, 34), (27351, 276), (2207, 22)])
def test_known_anomalies_of_the_six_tabular_sets_at_one_percent(normal, count):
    assert semi_supervised_counts(normal, 0.01, 0.0).known_anomalous == count


def test_known_normals_solve_the_published_equations():
    # 100 = known + unlabelled; T = 100 + m; m = 0.2 T = 25; known = 0.4 T = 50
    assert semi_supervised_counts(100, 0.2, 0.0, 0.4) == (50, 25, 0)
    # unknown = unlabelled = 50, so T = (100 + 50) / 0.8 ... with known = 0.4 T: T = 200 / 1.2, floor of each
    total = 200 / (1 + 0.4 - 0.2)
    assert semi_supervised_counts(100, 0.2, 0.5, 0.4) == (int(0.4 * total), int(0.2 * total), int(100 - 0.4 * total))


def test_named_classes_are_the_known_ones_and_pollution_comes_from_all():
    split = semi_supervised(CLASSES, rng(), "semi", labelled_ratio=0.1, pollution_ratio=0.2, labelled_classes=["2"])
    known, hidden = split.semi_label == -1, (split.semi_label == 0) & (CLASSES.label[split.train] == 1)
    assert set(CLASSES.klass[split.train[known]]) == {"2"}
    assert set(CLASSES.klass[split.train[hidden]]) == {"1", "2", "3"}


def test_a_number_of_classes_is_drawn_and_differs_between_seeds():
    drawn = set()
    for seed in range(12):
        split = semi_supervised(CLASSES, rng(seed), "semi", labelled_ratio=0.1, labelled_classes=2)
        kinds = frozenset(CLASSES.klass[split.train[split.semi_label == -1]])
        assert len(kinds) == 2
        drawn.add(kinds)
    assert len(drawn) > 1


def test_no_known_class_means_no_label_whatever_the_ratio():
    split = semi_supervised(CLASSES, rng(), "semi", labelled_ratio=0.2, labelled_classes=0, pollution_ratio=0.1)
    assert (split.semi_label == 0).all()
    assert CLASSES.label[split.train].sum() == int((CLASSES.label[split.train] == 0).sum() / 9)


def test_without_labels_and_pollution_the_rows_are_those_of_one_class():
    ours = semi_supervised(CLASSES, rng(), "semi", labelled_ratio=0.0)
    plain = one_class(CLASSES, rng(), "unsupervised")
    assert all(np.array_equal(getattr(ours, part), getattr(plain, part)) for part in ("train", "holdout", "test"))


def test_a_smaller_fraction_lies_in_a_larger_one():
    small, large = (small_train(CLASSES, rng(3), "unsupervised", fraction=f, holdout=0) for f in (0.2, 0.6))
    assert set(small.train) < set(large.train)


def test_the_same_seed_gives_the_same_split_and_another_seed_another():
    for protocol, options in (
        (semi_supervised, {"labelled_ratio": 0.1, "pollution_ratio": 0.1}),
        (contaminated, {"ratio": 0.3}),
        (small_train, {"fraction": 0.5}),
    ):
        first, again, other = (protocol(CLASSES, rng(seed), "semi", **options).train for seed in (1, 1, 2))
        assert np.array_equal(first, again)
        assert not np.array_equal(first, other)


@pytest.mark.parametrize("options, message", [
    ({"labelled_ratio": 0.5, "labelled_classes": ["3"]}, "asks for 570 known anomalies.*hold 300 of 3"),
    ({"labelled_ratio": 0.0, "pollution_ratio": 0.8}, "asks for 2280 unlabelled anomalies, and 1200"),
    ({"labelled_ratio": 0.1, "labelled_classes": ["0"]}, r"labelled_classes=\[0\] must name.*there are 1, 2, 3"),
    ({"labelled_ratio": 0.1, "labelled_classes": ["1", "1"]}, "must name different kinds"),
    ({"labelled_ratio": 0.1, "labelled_classes": 4}, "labelled_classes=4 kinds.*hold 3: 1, 2, 3"),
    ({"labelled_ratio": 0.0001}, "labelled_ratio=0.0001 of 570 normal training rows is less than one row"),
    ({"labelled_ratio": 1.0}, r"labelled_ratio is a share in \[0, 1\), got 1.0"),
    ({"labelled_ratio": 0.2, "labelled_normal_ratio": 0.9}, "asks for more known normals than the 570"),
])  # fmt: skip
def test_what_cannot_be_is_refused_with_the_numbers(options, message):
    with pytest.raises(UserError, match=message):
        semi_supervised(CLASSES, rng(), "semi", **options)


def test_a_data_set_without_enough_anomalous_rows_is_told_to_take_another_protocol():
    with pytest.raises(UserError, match="no anomalous test rows: use protocol=one_class"):
        semi_supervised(table({"0": 20}, {"0": 5}), rng(), "semi", labelled_ratio=0.1)
    with pytest.raises(UserError, match="all 2 anomalous test rows would train: none would be left to test"):
        semi_supervised(table({"0": 20}, {"0": 5, "1": 2}), rng(), "semi", labelled_ratio=0.1, holdout=0)


@pytest.mark.parametrize("protocol, options, message", [
    (small_train, {"fraction": 0.0}, r"in \(0, 1\], got 0.0"),
    (small_train, {"fraction": 0.001}, "at least 2 normal samples"),
    (contaminated, {"ratio": 1.0}, r"in \[0, 1\), got 1.0"),
    (contaminated, {"ratio": 0.001}, "of the 100 anomalous test rows is 0"),
])  # fmt: skip
def test_impossible_shares_are_refused(protocol, options, message):
    with pytest.raises(UserError, match=message):
        protocol(CLASSES, rng(), "unsupervised", **options)


def test_all_kinds_are_known_however_many_there_are():
    for kinds in (1, 3, 14):
        records = table({"0": 90, **{f"k{i}": 2 for i in range(kinds)}}, {"0": 5, "k0": 5})
        ratio = (2 * kinds + 0.5) / (90 + 2 * kinds)
        split = semi_supervised(records, rng(), "semi", labelled_ratio=ratio, labelled_classes="all", holdout=0)
        known = split.train[split.semi_label == -1]
        assert len(known) == 2 * kinds == len(set(known.tolist()))
        assert set(records.defect[known]) == {f"k{i}" for i in range(kinds)}


def test_all_kinds_of_none_and_another_word_are_refused():
    with pytest.raises(UserError, match="no anomalous test rows: use protocol=one_class"):
        semi_supervised(table({"0": 90}, {"0": 5}), rng(), "semi", labelled_ratio=0.05, labelled_classes="all")
    with pytest.raises(UserError, match=r"is a number, a list of kinds such as \[1, 2, 3\], or all; got every"):
        semi_supervised(CLASSES, rng(), "semi", labelled_ratio=0.05, labelled_classes="every")
