import numpy as np
import pytest

from adbench.report.contents import by_protocol, pixel_series, roc_series


def test_the_interval_of_a_mean_over_seeds_resamples_the_same_images(results, gather):
    rng = np.random.default_rng(0)
    label = np.arange(80) % 2
    scores = [rng.normal(size=80) + label for _ in range(2)]
    for seed, score in enumerate(scores):
        results.run(
            seed=seed, rows=[(str(i), int(v), "d", float(s)) for i, (v, s) in enumerate(zip(label, score, strict=True))]
        )
    contents = gather(results)
    (line,) = contents.lines
    single = [run.interval for run in contents.runs]
    low, high = line.interval
    assert min(s[0] for s in single) < low < high < max(s[1] for s in single)
    areas = np.mean([run.areas for run in contents.runs], axis=0)
    assert (low, high) == pytest.approx(tuple(np.quantile(areas, [0.025, 0.975])))


def test_a_method_is_represented_by_its_setting_and_never_by_its_score(results, gather):
    results.run("cbigan", seed=0, metrics={"image_auroc": 0.6})
    results.run("cbigan", seed=0, metrics={"image_auroc": 0.99}, changed={"method.alpha": 3}, suffix="-a")
    results.run("cbigan", seed=0, metrics={"image_auroc": 0.98}, budget="quick", suffix="-b")
    assert gather(results).best_known()["cbigan"]["mvtec/bottle"].values["image_auroc"].mean == 0.6


def test_ranks_are_over_methods_and_sets_that_all_ran_and_say_what_is_left_out(results, gather):
    for k, data in enumerate(("digits/0", "digits/1", "textures/brick")):
        results.run("cbigan", data, metrics={"image_auroc": 0.9})
        results.run("pca", data, metrics={"image_auroc": 0.8 + 0.1 * (k == 2)})
    results.run("vae", "digits/0", metrics={"image_auroc": 1.0})
    results.run("cbigan", "digits/2", metrics={"image_auroc": 1.0})
    ranking = gather(results).ranking
    assert (ranking.methods, ranking.data) == (["cbigan", "pca"], ["digits/0", "digits/1", "textures/brick"])
    assert ranking.ranks == pytest.approx([(1 + 1 + 1.5) / 3, (2 + 2 + 1.5) / 3])
    assert ranking.left_out_methods == ["vae"]
    assert ranking.left_out_data == ["digits/2"]


def test_one_method_has_no_ranks(results, gather):
    results.run("cbigan", "digits/0")
    results.run("cbigan", "digits/1")
    assert gather(results).ranking is None


def test_robustness_is_the_mean_over_seeds_at_each_level_one_class_included(results, gather):
    for seed in (0, 1):
        results.run("igd", "cifar10/0", seed, {"image_auroc": 0.8 + 0.02 * seed})
        for ratio, value in ((0.05, 0.7), (0.1, 0.6)):
            options = {"protocol": "contaminated", "values": {"ratio": ratio}}
            results.run("igd", "cifar10/0", seed, {"image_auroc": value + 0.04 * seed}, **options)
    (chart,) = gather(results).robustness
    (series,) = chart.series
    assert series.x.tolist() == [0.0, 0.05, 0.1]
    assert series.y == pytest.approx([0.81, 0.72, 0.62])
    assert series.spread == pytest.approx([0.02 / 2**0.5, 0.04 / 2**0.5, 0.04 / 2**0.5])


def test_a_robustness_curve_averages_only_over_sets_that_all_its_points_have(results, gather):
    results.run("igd", "cifar10/0", metrics={"image_auroc": 0.8})
    results.run("igd", "cifar10/1", metrics={"image_auroc": 0.2})
    results.run("igd", "cifar10/0", metrics={"image_auroc": 0.7}, protocol="small_train", values={"fraction": 0.2})
    (chart,) = gather(results).robustness
    assert chart.series[0].x.tolist() == [0.2, 1.0]
    assert chart.series[0].y == pytest.approx([0.7, 0.8])


def test_methods_under_several_protocols_stand_side_by_side(results, gather):
    for method, plain, polluted in (("igd", 0.9, 0.7), ("ssae", 0.8, 0.75)):
        for seed in (0, 1):
            results.run(method, seed=seed, metrics={"image_auroc": plain + 0.02 * seed})
            results.run(method, seed=seed, metrics={"image_auroc": polluted}, protocol="contaminated",
                        values={"ratio": 0.1})  # fmt: skip
    results.run("igd", metrics={"image_auroc": 0.6}, protocol="small_train", values={"fraction": 0.1})
    results.run("igd", "mvtec/screw")
    (table,) = by_protocol(gather(results).lines)
    assert (table.data, table.protocols) == (
        "mvtec/bottle",
        ["one_class", "small_train fraction=0.1", "contaminated ratio=0.1"],
    )
    means = {base.method: [value and round(value.mean, 3) for value in values] for base, values in table.rows}
    assert means == {"igd": [0.91, 0.6, 0.7], "ssae": [0.81, None, 0.75]}


def test_a_rule_that_holds_out_other_shares_of_other_numbers_of_rows_is_one_method_in_one_curve(results, gather):
    for ratio, held, value in ((None, 17, 0.9), (0.1, 19, 0.7)):
        protocol = {"protocol": "contaminated", "values": {"ratio": ratio}} if ratio else {}
        results.run("igd", holdout="auto", counts={"train": 315, "holdout": held}, metrics={"image_auroc": value},
                    **protocol)  # fmt: skip
    found = gather(results)
    (table,), (chart,) = by_protocol(found.lines), found.robustness
    assert [[value and value.mean for value in values] for _, values in table.rows] == [[0.9, 0.7]]
    assert [one.y.tolist() for one in chart.series] == [[0.9, 0.7]]
    assert {line.variant.held_out for line in found.lines} == {"auto"}


def test_more_curves_than_colours_are_told_apart_by_dashes(results, gather):
    for number in range(10):
        for ratio in (0.0, 0.1):
            results.run(f"m{number}", protocol="contaminated", values={"ratio": ratio}, suffix=f"-{ratio}")
    (chart,) = gather(results).robustness
    assert len({(one.colour, one.faint) for one in chart.series}) == 10


def test_an_image_size_that_was_made_of_another_is_one_change(results, gather):
    results.run("igd", changed={"data.image_size": 128, "method.image_size": 128})
    results.run("igd", seed=1, changed={"data.image_size": 128, "method.image_size": 64})
    assert {line.variant.changes for line in gather(results).lines} == {
        "data.image_size=128", "data.image_size=128, method.image_size=64"
    }  # fmt: skip


def test_labelled_and_pollution_ratio_are_two_curves(results, gather):
    for labelled, polluted, value in ((0.01, 0.0, 0.8), (0.05, 0.0, 0.9), (0.05, 0.1, 0.7)):
        values = {"labelled_ratio": labelled, "pollution_ratio": polluted, "labelled_classes": 1}
        results.run("esad", "odds/cardio", metrics={"image_auroc": value}, protocol="semi_supervised", values=values,
                    suffix=f"-{polluted}")  # fmt: skip
    results.run("esad", "odds/cardio", metrics={"image_auroc": 0.6})
    charts = {chart.key.split(" ")[0]: chart.series for chart in gather(results).robustness}
    curves = {
        key: [dict(zip(one.x.tolist(), one.y.tolist(), strict=True)) for one in found] for key, found in charts.items()
    }
    assert curves == {"labelled": [{0.0: 0.6, 0.01: 0.8, 0.05: 0.9}], "unknown": [{0.0: 0.9, 0.1: 0.7}]}


def test_what_the_curves_of_a_chart_share_stands_in_its_title(results, gather):
    for method, budget in (("igd", "paper"), ("deep_svdd", "quick")):
        for ratio in (0.0, 0.1):
            results.run(method, "cifar10/0", protocol="contaminated", values={"ratio": ratio}, budget=budget)
    (chart,) = gather(results).robustness
    assert chart.title == "cifar10: image AUROC, on cifar10/0"
    assert sorted(one.name for one in chart.series) == ["deep_svdd, budget quick", "igd, budget paper"]


def test_curves_come_from_scores_and_from_curves_json(results, gather):
    folder = results.run()
    (run,) = gather(results).runs
    roc = roc_series(run, "name", ("c0", False))
    assert (roc.x.tolist(), roc.y.tolist()) == ([0, 0, 0.5, 0.5, 1], [0, 0.5, 0.5, 1, 1])
    assert pixel_series(run, "name", ("c0", False), "pro") is None
    (folder / "curves.json").write_text(
        '{"pixel": {"fpr": [0, 0.2, 0.4, 1], "tpr": [0, 1, 1, 1], "pro": [0, 0.5, 0.7, 1]}}'
    )
    pro = pixel_series(run, "name", ("c0", False), "pro")
    assert (pro.x.tolist(), pro.y.tolist()) == ([0, 0.2, 0.3], [0, 0.5, pytest.approx(0.6)])


@pytest.mark.parametrize(
    "text", ["", "[]", '{"pixel": {}}', '{"pixel": {"fpr": [0, "x"], "pro": [0, 1]}}', '{"pixel": 3}']
)
def test_torn_curves_are_left_out(results, gather, text):
    folder = results.run()
    (folder / "curves.json").write_text(text)
    assert pixel_series(gather(results).runs[0], "name", ("c0", False), "pro") is None


def test_a_report_says_that_times_of_different_processors_do_not_compare(results, gather):
    results.run("pca", "digits/8", seed=0, hardware={"cpu_capability": "AVX2"})
    assert not [note for note in gather(results).notes if "AVX2" in note]
    results.run("pca", "digits/8", seed=1, hardware={"cpu_capability": "AVX512+bf16"})
    assert [note for note in gather(results).notes if "AVX2, AVX512+bf16" in note]
