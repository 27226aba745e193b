"""One curve and one interval, for a run's metrics.json and for a report of it."""

import subprocess
import sys

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from adbench.evaluation import curves, metrics
from adbench.report.collect import read_rows
from adbench.report.contents import gather


def scored(n=60, seed=0, ties=True):
    rng = np.random.default_rng(seed)
    label = (rng.random(n) < 0.4).astype(np.int8)
    score = rng.normal(size=n) + label
    return (score.round(1) if ties else score), label


def test_the_roc_curve_and_its_area_are_scikit_learns():
    score, label = scored()
    found = curves.curve(score, label)
    expected = roc_curve(label, score, drop_intermediate=False)
    assert found.fpr == pytest.approx(expected[0])
    assert found.tpr == pytest.approx(expected[1])
    assert curves.auroc(score, label) == pytest.approx(roc_auc_score(label, score))


def test_a_bootstrap_draw_is_the_auroc_of_its_resampled_rows():
    score, label = scored(40)
    areas = curves.bootstrap(score, label, draws=5, seed=3)
    normal, anomalous = score[label == 0], score[label == 1]
    times_normal = curves.resampled(len(normal), 5, 3).astype(int)
    times_anomalous = curves.resampled(len(anomalous), 5, 4).astype(int)
    assert (times_normal.sum(axis=0) == len(normal)).all()
    truth = np.append(np.zeros(len(normal)), np.ones(len(anomalous)))
    for k in range(5):
        drawn = np.append(normal.repeat(times_normal[:, k]), anomalous.repeat(times_anomalous[:, k]))
        assert areas[k] == pytest.approx(roc_auc_score(truth, drawn))


def test_the_interval_holds_the_area_and_narrows_with_the_test_set():
    widths = []
    for n in (50, 800):
        score, label = scored(n, ties=False)
        low, high = curves.interval(curves.bootstrap(score, label))
        assert low < roc_auc_score(label, score) < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 2


def test_the_interval_is_as_wide_as_hanley_and_mcneil_say():
    score, label = scored(400, ties=False)
    area, n1, n0 = roc_auc_score(label, score), int(label.sum()), int((label == 0).sum())
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    error = np.sqrt((area * (1 - area) + (n1 - 1) * (q1 - area**2) + (n0 - 1) * (q2 - area**2)) / (n1 * n0))
    low, high = curves.interval(curves.bootstrap(score, label))
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.15)


def test_one_label_alone_has_no_curve_and_no_interval():
    score, label = np.arange(4.0), np.zeros(4, np.int8)
    assert curves.curve(score, label) is None
    assert curves.auroc(score, label) is None
    assert curves.bootstrap(score, label) is None


def test_infinite_scores_have_a_curve():
    assert curves.auroc([0.0, np.inf, 1.0, np.inf], [0, 1, 0, 1]) == 1.0


def test_a_large_test_set_gets_fewer_draws_and_no_fewer_than_200():
    sizes = [len(curves.bootstrap(np.arange(float(n)), np.arange(n) % 2)) for n in (100, 4_000, 20_000)]
    assert sizes == [1000, 500, 200]


def test_curves_need_no_training_library():
    code = "import sys, adbench.evaluation.curves; sys.exit('torch' in sys.modules or 'scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_run_and_its_report_tell_the_same_auroc_and_the_same_interval(finished):
    folder = finished("method=pca", "data=digits")
    (run,) = gather(folder.parent, folder.parent / "report").runs
    assert run.interval == tuple(run.record["image_auroc_interval_95"])
    rows = read_rows(folder / "scores.csv")
    assert curves.auroc(rows.score, rows.label) == run.record["metrics"]["image_auroc"]
    assert metrics.bootstrap_auroc(rows.score, rows.label) == run.interval
