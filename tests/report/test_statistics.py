import numpy as np
import pytest
from scipy import stats

from adbench.report import statistics

# Demšar 2006, Table 6: areas of C4.5, with m, with cf, with both, on fourteen data sets. The two equal numbers of the
# last but one have ranks 2 and 3 there, as one decimal more would tell.
DEMSAR = np.array([
    [0.763, 0.768, 0.771, 0.798], [0.599, 0.591, 0.590, 0.569], [0.954, 0.971, 0.968, 0.967],
    [0.628, 0.661, 0.654, 0.657], [0.882, 0.888, 0.886, 0.898], [0.936, 0.931, 0.916, 0.931],
    [0.661, 0.668, 0.609, 0.685], [0.583, 0.583, 0.563, 0.625], [0.775, 0.838, 0.866, 0.875],
    [1.000, 1.000, 1.000, 1.000], [0.940, 0.962, 0.965, 0.962], [0.619, 0.666, 0.614, 0.669],
    [0.972, 0.981, 0.9751, 0.975], [0.957, 0.978, 0.946, 0.970],
])  # fmt: skip


def test_ranks_and_tests_are_those_of_demsars_example_but_for_its_ties():
    ranks = statistics.average_ranks(DEMSAR)
    assert ranks == pytest.approx([3.143, 2.000, 2.893, 1.964], abs=5e-4)
    found = statistics.friedman(DEMSAR)
    # The paper's 9.28 has no correction for ties: three pairs and one four of equal values.
    ties = 1 - (3 * (2**3 - 2) + (4**3 - 4)) / (14 * (4**3 - 4))
    assert found.chi_square * ties == pytest.approx(9.28, abs=0.01)
    assert found.p_chi_square == pytest.approx(stats.chi2.sf(found.chi_square, 3))
    assert found.f == pytest.approx(13 * found.chi_square / (14 * 3 - found.chi_square))
    assert found.p_f == pytest.approx(stats.f.sf(found.f, 3, 39))
    assert statistics.critical_difference(4, 14) == pytest.approx(1.25, abs=0.005)
    assert statistics.critical_difference(4, 14, alpha=0.10) == pytest.approx(1.12, abs=0.005)


def test_the_highest_value_ranks_first_and_ties_share_their_mean_rank():
    table = np.array([[0.9, 0.8, 0.7], [0.5, 0.5, 0.6], [0.4, 0.4, 0.4]])
    assert statistics.average_ranks(table) == pytest.approx([(1 + 2.5 + 2) / 3, (2 + 2.5 + 2) / 3, (3 + 1 + 2) / 3])


@pytest.mark.parametrize(("methods", "q"), [(2, 1.960), (3, 2.343), (4, 2.569), (5, 2.728), (10, 3.164)])
def test_the_critical_difference_uses_the_published_studentized_range(methods, q):
    expected = q * np.sqrt(methods * (methods + 1) / (6 * 9))
    assert statistics.critical_difference(methods, 9) == pytest.approx(expected, abs=2e-3)


def test_methods_that_rank_the_same_everywhere_differ_beyond_doubt():
    found = statistics.friedman(np.tile([0.9, 0.8, 0.7], (5, 1)) + np.arange(5)[:, None] / 100)
    assert (found.chi_square, found.p_f) == (pytest.approx(10.0), 0.0)


def test_methods_with_equal_values_everywhere_do_not_differ():
    assert statistics.friedman(np.full((5, 3), 0.7)) == (0.0, 1.0, 0.0, 1.0)
    assert statistics.wilcoxon(np.full((5, 2), 0.7)) == 1.0


def test_two_methods_have_the_signed_rank_test():
    # five differences of one sign: both tails of the 2^5 equally likely signs hold one case each
    table = np.array([[0.9, 0.8], [0.8, 0.6], [0.7, 0.4], [0.9, 0.5], [0.6, 0.1]])
    assert statistics.friedman(table) is None
    assert statistics.wilcoxon(table) == pytest.approx(2 / 2**5)


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
