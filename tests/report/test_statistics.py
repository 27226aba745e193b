import numpy as np
import pytest
from scipy import stats

from adbench.report import statistics


def test_the_tests_are_those_of_demsars_example():
    # Demšar 2006, Section 3.2.2: average ranks of four variants of C4.5 over fourteen data sets
    found = statistics.friedman(np.array([3.143, 2.000, 2.893, 1.964]), 14)
    assert found.chi_square == pytest.approx(9.28, abs=0.01)
    assert found.f == pytest.approx(3.69, abs=0.01)
    assert found.p_f == pytest.approx(stats.f.sf(3.69, 3, 39), abs=1e-3)
    assert statistics.critical_difference(4, 14) == pytest.approx(1.25, abs=0.005)
    assert statistics.critical_difference(4, 14, alpha=0.10) == pytest.approx(1.12, abs=0.005)


def test_the_highest_value_ranks_first_and_ties_share_their_mean_rank():
    table = np.array([[0.9, 0.8, 0.7], [0.5, 0.5, 0.6], [0.4, 0.4, 0.4]])
    assert statistics.average_ranks(table) == pytest.approx([(1 + 2.5 + 2) / 3, (2 + 2.5 + 2) / 3, (3 + 1 + 2) / 3])


@pytest.mark.parametrize(("methods", "q"), [(2, 1.960), (3, 2.343), (4, 2.569), (5, 2.728), (10, 3.164)])
def test_the_critical_difference_uses_the_published_studentized_range(methods, q):
    expected = q * np.sqrt(methods * (methods + 1) / (6 * 9))
    assert statistics.critical_difference(methods, 9) == pytest.approx(expected, abs=2e-3)


def test_ranks_without_ties_give_scipys_friedman_test():
    table = np.random.default_rng(0).random((8, 5))
    found = statistics.friedman(statistics.average_ranks(table), 8)
    expected = stats.friedmanchisquare(*table.T)
    assert found.chi_square == pytest.approx(expected.statistic)
    assert found.p_chi_square == pytest.approx(expected.pvalue)


def test_methods_that_rank_the_same_everywhere_differ_beyond_doubt():
    found = statistics.friedman(np.array([1.0, 2.0, 3.0]), 5)
    assert found.p_f == 0.0


def test_one_label_alone_has_no_transductive_accuracy():
    score, label = np.arange(4.0), np.zeros(4, np.int8)
    assert statistics.transductive_accuracy(score, label) is None


def test_infinite_scores_have_no_scaled_threshold():
    score, label = np.array([0.0, np.inf, 1.0, np.inf]), np.array([0, 1, 0, 1], np.int8)
    assert statistics.transductive_accuracy(score, label) is None


def test_the_transductive_accuracy_scales_over_the_test_set():
    # scaled: 0, 0.25, 0.6, 1; above 0.5: the last two, of which the third is normal
    score, label = np.array([2.0, 3.0, 4.4, 6.0]), np.array([0, 1, 0, 1], np.int8)
    assert statistics.transductive_accuracy(score, label) == pytest.approx((0.5 + 0.5) / 2)


def test_the_estimate_is_the_mean_and_the_sample_deviation():
    assert statistics.estimate([0.7, 0.8, 0.9, None]) == pytest.approx((0.8, 0.1, 3))
    assert statistics.estimate([0.7]) == (0.7, None, 1)
    assert statistics.estimate([None]) is None


def test_the_complete_block_is_the_largest_that_all_its_methods_ran_on():
    ran = {"a": {"1", "2", "3"}, "b": {"1", "2", "3"}, "c": {"1", "2"}, "d": {"9"}}
    assert statistics.complete_block(ran) == (["a", "b", "c"], ["1", "2"])
    assert statistics.complete_block({"a": {"1", "2"}, "b": {"2", "3"}}) == ([], [])
