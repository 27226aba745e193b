import re
import warnings

import numpy as np
import pytest
from scipy.stats import binom

from adbench.evaluation import thresholds
from adbench.types import UserError


def test_the_threshold_is_a_held_out_score_that_few_held_out_scores_exceed():
    held_out = np.random.default_rng(0).normal(size=200)
    threshold = thresholds.held_out_threshold(held_out, 0.95)
    assert threshold["value"] in held_out
    assert (held_out > threshold["value"]).mean() == pytest.approx(0.05)
    assert (threshold["quantile"], threshold["n"]) == (0.95, 200)
    assert "held-out" in threshold["origin"]
    assert threshold["false_alarm_rate"] == pytest.approx(0.05)


def test_a_false_alarm_rate_that_the_largest_of_n_does_not_reach_warns_with_the_one_that_it_does():
    with pytest.warns(
        UserWarning, match=r"evaluation\.quantile=0\.95 .*about 0\.0909.*at least 19 \(protocol\.holdout"
    ):
        threshold = thresholds.held_out_threshold(np.arange(10.0), 0.95)
    assert threshold["value"] == 9.0
    assert threshold["false_alarm_rate"] == pytest.approx(1 / 11)
    with pytest.warns(
        UserWarning, match=r"rate of 0\.05\) .* rate of about 0\.0526\."
    ):  # not "0.05 cannot be, 0.05 can"
        thresholds.held_out_threshold(np.arange(18.0), 0.95)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert thresholds.held_out_threshold(np.arange(19.0), 0.95)["false_alarm_rate"] == pytest.approx(0.05)


@pytest.mark.parametrize("n", [1, 2, 3, 10, 18, 98, 998])
@pytest.mark.parametrize("key", ["evaluation.quantile", "--false-alarm-rate"])
def test_the_number_of_rows_and_the_value_that_the_warning_names_need_no_warning(n, key):
    with pytest.warns(UserWarning) as caught:
        thresholds.held_out_threshold(np.arange(float(n)), 1 - 0.0005, key=key)
    (said,) = [str(warning.message) for warning in caught]
    assert said.startswith(f"{key}=")
    rows, value = re.search(r"at least (\d+) .* set \S+=(\S+)$", said).groups()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        thresholds.held_out_threshold(np.arange(float(rows)), 1 - 0.0005)
        thresholds.held_out_threshold(np.arange(float(n)), float(value) if "quantile" in key else 1 - float(value))


def test_numbers_are_told_apart_by_as_many_digits_as_it_takes():
    assert thresholds._told_apart(0.05, 1 / 19) == ["0.05", "0.0526"]
    assert thresholds._told_apart(0.01, 1 / 99.9) == ["0.01", "0.01001"]


def test_without_held_out_scores_there_is_no_threshold():
    with pytest.warns(UserWarning, match="no normal samples were held out"):
        assert thresholds.held_out_threshold([]) is None


@pytest.mark.parametrize("quantile", [0.0, 1.0, 95])
def test_a_quantile_outside_zero_to_one_is_refused(quantile):
    with pytest.raises(UserError, match="quantile"):
        thresholds.held_out_threshold([1.0, 2.0], quantile)


def test_conformal_p_values_by_hand_and_under_the_null():
    assert thresholds.conformal_p_value([0.0, 2.0, 2.5, 9.0], [1.0, 2.0, 3.0]).tolist() == [1.0, 0.75, 0.5, 0.25]
    rng = np.random.default_rng(0)
    p = np.concatenate([thresholds.conformal_p_value(rng.normal(size=1), rng.normal(size=19)) for _ in range(4000)])
    assert (p <= 0.1).mean() == pytest.approx(0.1, abs=0.02)


# -- how sure it is ---------------------------------------------------------------------------------------------------


def test_the_exact_interval_by_hand():
    # None of n above: the upper end p has (1 - p)^n = 0.025.
    assert thresholds.binomial_interval(0, 19) == pytest.approx((0.0, 1 - 0.025 ** (1 / 19)))
    assert thresholds.binomial_interval(19, 19) == pytest.approx((0.025 ** (1 / 19), 1.0))


@pytest.mark.parametrize(("count", "n"), [(1, 20), (2, 48), (10, 200)])
def test_the_ends_of_the_exact_interval_are_where_the_binomial_tails_are_one_fortieth(count, n):
    low, high = thresholds.binomial_interval(count, n)
    assert binom.sf(count - 1, n, low) == pytest.approx(0.025)
    assert binom.cdf(count, n, high) == pytest.approx(0.025)


def test_the_interval_holds_the_true_false_alarm_rate_of_a_threshold_that_is_one_of_the_scores():
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(2000):  # uniform scores: the false-alarm rate of a threshold t is 1 - t
        threshold = thresholds.held_out_threshold(rng.random(48), 0.95)
        low, high = threshold["false_alarm_interval_95"]
        held += low <= 1 - threshold["value"] <= high
    assert held / 2000 >= 0.95


def test_the_expected_rate_is_the_mean_over_data_sets():
    rng = np.random.default_rng(1)
    found = [thresholds.held_out_threshold(rng.random(48), 0.95) for _ in range(4000)]
    assert {one["above"] for one in found} == {2}
    assert found[0]["expected_false_alarm_rate"] == pytest.approx(3 / 49)
    assert np.mean([1 - one["value"] for one in found]) == pytest.approx(3 / 49, abs=0.003)


@pytest.mark.parametrize("quantile", [0.5, 0.8, 0.9, 0.95, 0.99, 0.999])
def test_the_needed_number_of_rows_is_the_smallest_that_a_valid_threshold_has(quantile):
    n = thresholds.needed(quantile)
    valid = lambda n: np.ceil((n + 1) * quantile - 1e-9) <= n  # noqa: E731
    assert valid(n)
    assert not valid(n - 1)


def test_the_distribution_is_told_by_held_out_scores():
    quantiles = thresholds.held_out_threshold(np.arange(1.0, 101.0), 0.95)["score_quantiles"]
    assert quantiles == {"0": 1.0, "0.05": 5.0, "0.25": 25.0, "0.5": 50.0, "0.75": 75.0, "0.95": 95.0, "1": 100.0}


def test_the_line_tells_the_threshold_its_origin_and_the_interval():
    line = thresholds.in_words(thresholds.held_out_threshold(np.arange(48.0), 0.95, "5-fold cross-validation"))
    assert line == (
        "threshold 45, the 0.95 quantile of 48 scores (5-fold cross-validation): expect 6.12 % false alarms, with 95 % "
        "confidence 0.509 to 14.3 %"
    )
