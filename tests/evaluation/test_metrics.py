import itertools
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.measure import label as label_regions
from sklearn import metrics as sklearn_metrics

from adbench.evaluation import metrics
from adbench.evaluation.metrics import PixelMetrics
from adbench.types import UserError

pytestmark = pytest.mark.filterwarnings("ignore:pixel_auroc is known to")

# -- images -----------------------------------------------------------------------------------------------------------


def scored(seed, n=60, levels=None):
    rng = np.random.default_rng(seed)
    label = rng.permutation(np.arange(n) % 3 == 0).astype(int)
    score = rng.normal(size=n) + label
    return (np.round(score * levels) / levels if levels else score), label


@pytest.mark.parametrize("levels", [None, 2, 0.5], ids=["distinct", "some ties", "mostly ties"])
@pytest.mark.parametrize("seed", range(5))
def test_image_metrics_equal_scikit_learn_with_and_without_ties(seed, levels):
    score, label = scored(seed, levels=levels)
    assert metrics.image_auroc(score, label) == pytest.approx(sklearn_metrics.roc_auc_score(label, score), abs=1e-12)
    assert metrics.image_ap(score, label) == pytest.approx(
        sklearn_metrics.average_precision_score(label, score), abs=1e-12
    )
    decisions = [score >= t for t in np.append(np.unique(score), np.inf)]
    assert metrics.image_f1_max(score, label) == pytest.approx(
        max(sklearn_metrics.f1_score(label, d, zero_division=0) for d in decisions)
    )
    assert metrics.image_balanced_accuracy_max(score, label) == pytest.approx(
        max(sklearn_metrics.balanced_accuracy_score(label, d) for d in decisions)
    )
    for threshold in (-9.0, score[3], 0.3, 9.0):
        assert metrics.image_balanced_accuracy(score, label, threshold) == pytest.approx(
            sklearn_metrics.balanced_accuracy_score(label, score > threshold)
        )


def test_image_metrics_by_hand():
    score, label = [4.0, 3.0, 2.0, 1.0], [1, 0, 1, 0]
    assert metrics.image_auroc(score, label) == 0.75
    assert metrics.image_ap(score, label) == pytest.approx((1 + 2 / 3) / 2)
    assert metrics.image_f1_max(score, label) == pytest.approx(0.8)
    assert metrics.image_balanced_accuracy_max(score, label) == 0.75


def test_a_tie_between_a_normal_and_an_anomalous_sample_counts_half():
    assert metrics.image_auroc([1.0, 1.0], [0, 1]) == 0.5
    assert metrics.image_auroc([0.0, 1.0, 1.0], [0, 0, 1]) == 0.75


def test_scores_far_outside_zero_to_one_are_not_squashed():
    label = np.arange(40) % 2
    score = 1e6 + np.arange(40) + 100 * label
    assert metrics.image_auroc(score, label) == 1.0


def test_infinite_scores_are_ranked():
    assert metrics.image_auroc([-np.inf, 0.0, np.inf, np.inf], [0, 0, 1, 1]) == 1.0
    assert metrics.image_auroc([-np.inf, -np.inf], [0, 1]) == 0.5


@given(st.integers(0, 10_000), st.sampled_from([None, 1, 3]))
@settings(max_examples=40, deadline=None)
def test_strictly_increasing_transforms_change_no_exact_metric(seed, levels):
    score, label = scored(seed, levels=levels)
    assert metrics.image_metrics(score, label, 0.5) == metrics.image_metrics(np.exp(score), label, np.exp(0.5))
    assert metrics.image_metrics(score, label) == metrics.image_metrics(score * 7 - 3, label)


@given(st.integers(0, 10_000), st.sampled_from([None, 1, 3]))
@settings(max_examples=100, deadline=None)
def test_the_best_balanced_accuracy_bounds_the_auroc(seed, levels):
    score, label = scored(seed, n=12, levels=levels)
    best, auroc = metrics.image_balanced_accuracy_max(score, label), metrics.image_auroc(score, label)
    assert best >= 0.5
    assert 2 * best - 1 - 1e-12 <= auroc <= 1 - 2 * (1 - best) ** 2 + 1e-12


@pytest.mark.parametrize("label", [[0, 0, 0], [1, 1, 1], []])
def test_metrics_without_both_labels_are_none_with_a_warning(label):
    score = np.arange(len(label), dtype=float)
    with pytest.warns(UserWarning, match="both kinds"):
        assert set(metrics.image_metrics(score, label, 0.0).values()) == {None}
    with pytest.warns(UserWarning, match="both kinds"):
        assert metrics.bootstrap_auroc(score, label, seed=0) is None


def test_a_nan_score_is_an_error_that_counts_them():
    with pytest.raises(UserError, match=r"1 of 3 scores are NaN \(first at position 1\)"):
        metrics.image_auroc([0.0, np.nan, 1.0], [0, 1, 1])


@pytest.mark.parametrize(("score", "label"), [([0.0, 1.0], [0, -1]), ([0.0, 1.0], [0])])
def test_withheld_labels_and_unequal_lengths_are_errors(score, label):
    with pytest.raises(UserError):
        metrics.image_auroc(score, label)


def test_torch_and_numpy_scores_give_the_same():
    score, label = scored(0)
    score = score.astype(np.float32)
    assert metrics.image_metrics(torch.tensor(score), torch.tensor(label)) == metrics.image_metrics(score, label)


def test_the_bootstrap_interval_repeats_narrows_with_n_and_agrees_with_a_loop():
    score, label = scored(0, n=60, levels=3)
    low, high = metrics.bootstrap_auroc(score, label, seed=3, draws=2000)
    assert (low, high) == metrics.bootstrap_auroc(score, label, seed=3, draws=2000)
    assert (low, high) != metrics.bootstrap_auroc(score, label, seed=4, draws=2000)
    assert low < metrics.image_auroc(score, label) < high
    wide = metrics.bootstrap_auroc(*scored(0, n=600, levels=3), seed=3)
    assert wide[1] - wide[0] < (high - low) / 2
    rng = np.random.default_rng(0)
    normal, anomalous = score[label == 0], score[label == 1]
    loop = []
    for _ in range(2000):
        a, b = rng.choice(anomalous, len(anomalous)), rng.choice(normal, len(normal))
        loop.append((a[:, None] > b).mean() + (a[:, None] == b).mean() / 2)
    assert np.allclose((low, high), np.quantile(loop, [0.025, 0.975]), atol=0.015)


# -- pixels -----------------------------------------------------------------------------------------------------------


def maps_and_masks(seed=0, images=6, side=24, decimals=None):
    """Smooth maps, defects in every other image, several regions, some touching at a corner only."""
    rng = np.random.default_rng(seed)
    maps = ndimage.gaussian_filter(rng.normal(size=(images, side, side)), (0, 2, 2))
    maps = maps / maps.std()
    mask = np.zeros(maps.shape, dtype=bool)
    for image in range(0, images, 2):
        for _ in range(3):
            y, x, h, w = *rng.integers(0, side - 6, 2), *rng.integers(2, 6, 2)
            mask[image, y : y + h, x : x + w] = True
            maps[image, y : y + h, x : x + w] += rng.uniform(0, 3)
            mask[image, y + h, x + w] = True
    if decimals is not None:
        maps = np.round(maps, decimals)
    return torch.tensor(maps[:, None], dtype=torch.float32), torch.tensor(mask[:, None])


def counted(maps, mask, batch=6, offset=0.0):
    pixels = PixelMetrics(offset)
    for start in range(0, len(maps), batch):
        pixels.update(maps[start : start + batch], mask[start : start + batch])
    return pixels


def plain_pro(maps, mask, limit=0.3):
    """Per-region overlap by a sweep over every distinct score, region by region."""
    maps, mask = maps[:, 0].numpy(), mask[:, 0].numpy()
    regions = []
    for image, one in enumerate(mask):
        numbered = label_regions(one, connectivity=2)
        regions += [(image, numbered == k) for k in range(1, numbered.max() + 1)]
    fpr, pro = [0.0], [0.0]
    for threshold in np.unique(maps)[::-1]:
        found = maps >= threshold
        fpr.append(found[~mask].mean())
        pro.append(np.mean([found[image][region].mean() for image, region in regions]))
    x = np.unique(np.append(np.array(fpr)[np.array(fpr) <= limit], limit))
    area = 0.0
    for left, right in itertools.pairwise(x):  # at a vertical step the upper end counts to the right
        at_left = max(p for f, p in zip(fpr, pro, strict=True) if f == left)
        following = next(i for i, f in enumerate(fpr) if f >= right)
        at_right = np.interp(right, [left, fpr[following]], [at_left, pro[following]])
        area += (right - left) * (at_left + at_right) / 2
    return area / limit


@pytest.mark.parametrize("decimals", [None, 1, 0], ids=["distinct", "some ties", "mostly ties"])
@pytest.mark.parametrize("seed", [0, 1])
def test_pixel_metrics_equal_scikit_learn_and_a_plain_threshold_sweep(seed, decimals):
    maps, mask = maps_and_masks(seed, decimals=decimals)
    got = counted(maps, mask).compute()
    truth, score = mask.flatten().numpy(), maps.flatten().numpy()
    assert got["pixel_auroc"] == pytest.approx(sklearn_metrics.roc_auc_score(truth, score), abs=1e-4)
    assert got["pixel_ap"] == pytest.approx(sklearn_metrics.average_precision_score(truth, score), abs=1e-3)
    precision, recall, _ = sklearn_metrics.precision_recall_curve(truth, score)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    assert got["pixel_f1_max"] == pytest.approx(f1.max(), abs=1e-3)
    assert got["pixel_pro"] == pytest.approx(plain_pro(maps, mask), abs=1e-3)
    per_image = [
        sklearn_metrics.roc_auc_score(m.flatten(), s.flatten()) for s, m in zip(maps, mask, strict=True) if m.any()
    ]
    assert got["pixel_auroc_anomalous_images"] == pytest.approx(np.mean(per_image), abs=1e-12)


def test_pro_by_hand_weights_regions_equally_and_interpolates_at_the_limit():
    mask = torch.zeros(1, 1, 1, 16, dtype=torch.bool)
    mask[..., 0] = True  # one pixel, found first
    mask[..., 2:6] = True  # four pixels, found last
    maps = torch.zeros(1, 1, 1, 16)
    maps[..., 0] = 2.0
    maps[..., 6:8] = 1.0  # 2 of 11 normal pixels
    # (0, 0), (0, 1/2), (2/11, 1/2), (1, 1)
    at_limit = 0.5 + 0.5 * (0.3 - 2 / 11) / (9 / 11)
    expected = (2 / 11 * 0.5 + (0.3 - 2 / 11) * (0.5 + at_limit) / 2) / 0.3
    assert counted(maps, mask).compute()["pixel_pro"] == pytest.approx(expected, abs=1e-12)


def test_regions_that_touch_at_a_corner_are_one_and_regions_of_two_images_are_two():
    mask = np.zeros((2, 3, 3), dtype=bool)
    mask[0, 0, 0] = mask[0, 1, 1] = mask[1, 0, 0] = True
    shares, regions = metrics.region_shares(mask)
    assert regions == 2
    assert shares.tolist() == [0.5, 0.5, 1.0]


def test_merging_halves_and_any_batch_size_equal_the_whole():
    maps, mask = maps_and_masks()
    whole = counted(maps, mask, batch=6)
    for other in (counted(maps, mask, batch=1), counted(maps[:3], mask[:3])):
        if other.update_count == 1:
            other.merge_state(counted(maps[3:], mask[3:]))
        assert torch.equal(other.negatives, whole.negatives)
        assert torch.equal(other.positives, whole.positives)
        assert other.compute() == pytest.approx(whole.compute(), abs=1e-12)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_counting_on_a_gpu_equals_counting_on_the_cpu():
    maps, mask = maps_and_masks(decimals=1)
    gpu = PixelMetrics(0.25).to("cuda")
    gpu.update(maps.cuda(), mask.cuda())
    cpu = counted(maps, mask, offset=0.25)
    assert torch.equal(gpu.negatives.cpu(), cpu.negatives)
    assert gpu.compute() == pytest.approx(cpu.compute(), abs=1e-12)


def test_power_of_two_scales_change_nothing_and_other_scales_little():
    maps, mask = maps_and_masks()
    reference = counted(maps, mask).compute()
    assert counted(maps * 2.0**40, mask).compute() == pytest.approx(reference, abs=1e-12)
    assert counted(maps * 1e-6, mask).compute() == pytest.approx(reference, abs=1e-3)


def test_images_without_defects_count_as_normal_pixels():
    maps, mask = maps_and_masks()
    without = torch.full((4, 1, 24, 24), -9.0)
    got = counted(torch.cat([maps, without]), torch.cat([mask, torch.zeros_like(without, dtype=torch.bool)]))
    before = counted(maps, mask)
    assert int(got.negatives.sum()) == int(before.negatives.sum()) + without.numel()
    assert got.compute()["pixel_auroc"] > before.compute()["pixel_auroc"]
    assert got.compute()["pixel_auroc_anomalous_images"] == before.compute()["pixel_auroc_anomalous_images"]


def test_bins_follow_the_order_of_floats_and_join_the_two_zeros():
    special = [-np.inf, -3e38, -1.0, -1e-38, -1e-45, -0.0, 0.0, 1e-45, 1e-38, 1e-3, 1.0, 3e38, np.inf]
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, 2**32, 20_000, dtype=np.uint32).view(np.float32)
    values = np.sort(np.append(drawn[~np.isnan(drawn)], np.float32(special)))
    bins = metrics.bin_of(torch.tensor(values))
    assert (bins.diff() >= 0).all()
    assert int(bins.min()) >= 0 and int(bins.max()) < metrics.BINS
    minus, plus = metrics.bin_of(torch.tensor([-0.0, 0.0]))
    assert minus == plus
    relative = metrics.bin_of(torch.tensor([1.0, 1 + 2**-11, -1.0, -1 - 2**-11]))
    assert relative[1] == relative[0] + 1 and relative[3] == relative[2] - 1


def test_infinite_pixels_are_counted_and_nan_pixels_are_an_error():
    maps, mask = maps_and_masks()
    maps[0, 0, 0, :2] = torch.tensor([np.inf, -np.inf])
    truth, score = mask.flatten().numpy(), maps.flatten().nan_to_num(posinf=1e9, neginf=-1e9).numpy()
    expected = sklearn_metrics.roc_auc_score(truth, score)
    assert counted(maps, mask).compute()["pixel_auroc"] == pytest.approx(expected, abs=1e-4)
    maps[1, 0, 0, 0] = np.nan
    maps[2, 0, 0, 0] = -np.nan
    with pytest.raises(UserError, match="2 pixels of the anomaly maps are NaN"):
        counted(maps, mask).compute()


def test_an_offset_makes_an_auroc_exact_that_a_far_off_center_spoils():
    maps, mask = maps_and_masks()
    maps = 0.1 * maps + 100
    exact = sklearn_metrics.roc_auc_score(mask.flatten().numpy(), maps.flatten().numpy())
    with pytest.warns(UserWarning, match=r"around (99\.9|100)"):
        spoiled = counted(maps, mask).compute()
    assert 1e-4 < abs(spoiled["pixel_auroc"] - exact) <= spoiled["pixel_auroc_bound"]
    offset = metrics.histogram_offset(maps[1::2])
    assert offset == pytest.approx(100, abs=0.1)
    mended = counted(maps, mask, offset=offset).compute()
    assert mended["pixel_auroc_bound"] < 1e-4
    assert mended["pixel_auroc"] == pytest.approx(exact, abs=1e-4)


def test_maps_that_fill_the_bins_need_no_offset():
    values = np.random.default_rng(0).normal(size=20_000)
    assert metrics.histogram_offset(values) == 0.0
    assert metrics.histogram_offset(np.zeros(100)) == 0.0


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_the_exact_auroc_lies_within_the_bound(seed):
    rng = np.random.default_rng(seed)
    maps = torch.tensor(rng.normal(50, rng.uniform(0.02, 2), (2, 1, 8, 8)), dtype=torch.float32)
    mask = torch.tensor(rng.random((2, 1, 8, 8)) < 0.3)
    mask[0, 0, 0, :2] = torch.tensor([True, False])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        got = counted(maps, mask).compute()
    exact = sklearn_metrics.roc_auc_score(mask.flatten().numpy(), maps.flatten().numpy())
    assert abs(got["pixel_auroc"] - exact) <= got["pixel_auroc_bound"] + 1e-12


@pytest.mark.parametrize("value", [False, True])
def test_pixel_metrics_without_both_kinds_of_pixel_are_none_with_a_warning(value):
    pixels = counted(torch.rand(2, 1, 4, 4), torch.full((2, 1, 4, 4), value))
    with pytest.warns(UserWarning, match="both kinds of pixels"):
        assert set(pixels.compute().values()) == {None}
    assert pixels.curves() == {}


def test_maps_and_masks_of_two_sizes_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        PixelMetrics().update(torch.rand(2, 1, 4, 4), torch.zeros(2, 1, 5, 5, dtype=torch.bool))


def test_memory_does_not_grow_with_the_test_set():
    def held(pixels):
        return sum(getattr(pixels, name).numel() for name in pixels._defaults)

    maps, mask = maps_and_masks()
    assert held(counted(maps, mask)) == held(counted(maps.repeat(5, 1, 1, 1), mask.repeat(5, 1, 1, 1)))


def test_counting_leaves_the_maps_and_the_thread_count_alone():
    maps, mask = maps_and_masks()
    before, threads = maps.clone(), torch.get_num_threads()
    counted(maps, mask, offset=1.0)
    assert torch.equal(maps, before) and torch.get_num_threads() == threads


def test_plotted_curves_are_few_points_of_the_curves_that_were_integrated():
    maps, mask = maps_and_masks(images=20)
    pixels = counted(maps, mask)
    curves, results = pixels.curves(200), pixels.compute()
    assert 100 < len(curves["fpr"]) <= 200
    fpr, tpr, pro = (np.array(curves[name]) for name in ("fpr", "tpr", "pro"))
    assert (fpr[0], tpr[0], pro[0], fpr[-1], tpr[-1]) == (0, 0, 0, 1, 1)
    assert np.trapezoid(tpr, fpr) == pytest.approx(results["pixel_auroc"], abs=2e-3)
    assert metrics.area_up_to(fpr, pro, 0.3) == pytest.approx(results["pixel_pro"], abs=5e-3)
