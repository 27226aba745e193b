import pytest
import yaml

from adbench.experiment.groups import choices
from adbench.report import published
from adbench.report.published import mapping, rows, tables


def cells(contents, paper, table, **wanted):
    found = contents.answers[paper, table]
    return [c for c in found if all(getattr(c, key) == value for key, value in wanted.items())]


def value_of(cell):
    return (round(cell.value.mean, 10), None if cell.value.std is None else round(cell.value.std, 10), cell.value.n)


# -- the published numbers and the mapping ------------------------------------------------------------------------


def test_all_published_tables_are_there():
    numbers = {paper: {row.table for row in rows() if row.paper == paper} for paper in {row.paper for row in rows()}}
    assert numbers == {
        "CBiGAN": {"II", "III"}, "P-WAE": {"I", "II"}, "SSAE": {"2", "3", "4"},
        "IGD": {"1", "2", "3", "4", "5", "6", "7", "S1", "S2", "S3", "S4", "S5"},
        "ESAD": {"1", "2", "3", "4", "5", "8", "9", "10"},
    }  # fmt: skip
    assert len(rows()) == 2395
    assert all(0 <= row.number <= 1 for row in rows())


def test_every_published_row_has_a_place_here():
    for row in rows():
        assert row.metric in mapping()["metrics"]
        join, ids = published.members(row)
        assert join in ("one", "mean", "experiments") and ids
        assert published.wanted_protocol(row)[0][0] == "protocol"
        assert row.paper in mapping()["papers"]


def test_every_name_of_the_mapping_exists():
    printed = {(row.paper, row.method) for row in rows()}
    known = set(choices("method")) | {"esad/fashion_mnist_shallow"}
    trained = set(choices("pretraining"))
    for paper, methods in mapping()["methods"].items():
        for name, spec in methods.items():
            assert (paper, name) in printed
            for here in (spec, *spec.get("in_table", {}).values()):
                named = {method for kind in ("ours", "literal", "small", "variants") for method in here.get(kind, ())}
                assert named <= known, name
            assert all((paper, table) in tables() for table in spec.get("in_table", ()))
            assert {*spec.get("pretraining", ()), *spec.get("expected_pretraining", ())} <= trained
    assert set(mapping()["settings"]) >= {row.setting for row in rows()}
    assert all(tuple(key.split(" ")) in tables() for key in mapping()["remarks"])
    data = set(choices("data"))
    for row in rows():
        for template, member in published.members(row)[1]:
            ours = template.format(member)
            assert ours in data or ours.rsplit("/", 1)[0] in data, ours


def test_each_own_method_of_a_paper_is_mapped():
    for paper, methods in mapping()["methods"].items():
        ours = {row.method for row in rows() if row.paper == paper and "ours" in row.method.lower()}
        assert ours <= set(methods)


def test_the_marked_bounds_are_those_that_the_printed_pairs_break():
    """2B - 1 <= AUROC <= 1 - 2(1 - B)^2 for the largest balanced accuracy B, each printed to half a unit."""
    half, own = 0.005, {"EGBAD", "CBiGAN (ours)", "CBiGAN", "P-WAE (Ours)"}
    pairs = {}
    for row in rows():
        if row.paper in ("CBiGAN", "P-WAE") and row.method in own and not row.category.startswith("mean"):
            pairs.setdefault((row.paper, row.method, row.category), {})["max" in row.metric] = row
    broken = set()
    for pair in pairs.values():
        b, a = pair[True].number, pair[False].number
        low, high = 2 * (b - half) - 1, 1 - 2 * (1 - b - half) ** 2
        if a + half < low - 1e-9 or a - half > high + 1e-9:
            broken |= {pair[True], pair[False]}
    assert {row for row in rows() if row.breaks} == broken
    assert len(broken) == 16


# -- our numbers beside them --------------------------------------------------------------------------------------


def test_mean_deviation_n_and_difference_are_those_computed_by_hand(results, gather):
    for seed, value in enumerate((0.80, 0.90, 0.85)):
        results.run("cbigan", "mvtec/bottle", seed, {"image_auroc": value, "image_balanced_accuracy_max": 0.9})
    (cell,) = cells(gather(results), "CBiGAN", "III", category="bottle")
    assert value_of(cell) == (0.85, 0.05, 3)
    assert (cell.row.method, cell.row.value) == ("CBiGAN (ours)", "0.87")
    assert cell.difference == pytest.approx(-0.02)
    assert (cell.kind, cell.marks) == ("paper", ())
    assert published.display(cell) == published.display(cell) | {
        "our value": "0.850 ± 0.050", "published": "0.87", "difference": "-0.020", "n": "3", "our run": "cbigan",
    }  # fmt: skip


def test_percent_tables_are_shown_in_percent(results, gather):
    results.run("ssae", "mvtec/carpet", 0, {"image_auroc": 0.99, "pixel_auroc": 0.985})
    (cell,) = cells(gather(results), "SSAE", "2", category="carpet")
    assert cell.difference == pytest.approx(0.985 - cell.row.number)
    assert published.display(cell)["our value"] == "98.5"


def test_a_baseline_has_the_unit_of_the_values_that_it_stands_beside(results, gather):
    for method in ("ssae", "pca"):
        results.run(method, "mvtec/carpet", 0, {"image_auroc": 0.9})
    results.run("cbigan", "mvtec/carpet", 0, {"image_auroc": 0.9})
    contents = gather(results)
    for paper, table, values in (("SSAE", "3", ["90.0", "90.0"]), ("CBiGAN", "III", ["0.900", "0.900"])):
        found = cells(contents, paper, table, category="carpet")
        assert [published.display(cell)["our value"] for cell in found] == values


def test_a_mean_over_categories_is_over_categories_first_and_seeds_second(results, gather):
    textures = mapping()["members"]["mvtec_textures"]
    for seed in (0, 1):
        for k, category in enumerate(textures):
            results.run("cbigan", f"mvtec/{category}", seed, {"image_auroc": 0.5 + 0.1 * k + 0.02 * seed})
    (cell,) = cells(gather(results), "CBiGAN", "III", category="mean_textures")
    assert value_of(cell) == (0.71, round(0.02 / 2**0.5, 10), 2)
    assert cell.complete and cell.difference == pytest.approx(0.71 - cell.row.number)


def test_an_incomplete_mean_says_so_and_is_compared_with_nothing(results, gather):
    results.run("igd", "mvtec/bottle", 0, {"pixel_auroc_anomalous_images": 0.8}, pretraining="simclr")
    results.run("igd", "mvtec/screw", 0, {"pixel_auroc_anomalous_images": 0.6}, pretraining="simclr")
    contents = gather(results)
    (cell,) = cells(contents, "IGD", "3")
    assert value_of(cell) == (0.7, None, 1)
    assert (cell.marks, cell.difference) == (("2 of 15",), None)
    # a table that prints the single categories shows those
    assert {cell.category for cell in cells(contents, "IGD", "S5")} == {"bottle", "screw"}


def test_seeds_with_unequal_categories_are_not_mixed_into_a_deviation(results, gather):
    results.run("igd", "mvtec/bottle", 0, {"pixel_auroc_anomalous_images": 0.8}, pretraining="simclr")
    results.run("igd", "mvtec/screw", 1, {"pixel_auroc_anomalous_images": 0.6}, pretraining="simclr")
    (cell,) = cells(gather(results), "IGD", "3")
    assert cell.value.n == 1


def test_the_kind_that_a_medical_set_knows_is_part_of_its_row(results, gather):
    values = {"labelled_ratio": 0.039, "labelled_classes": ["Infiltration"]}
    results.run("esad", "nih_chest_xray/ap", metrics={"image_auroc": 0.6}, protocol="semi_supervised", values=values)
    (cell,) = cells(gather(results), "ESAD", "2", dataset="NIH (AP)")
    assert cell.row.method == "ESAD (ours)" and cell.difference == pytest.approx(0.6 - 0.601)


@pytest.mark.parametrize(
    ("method", "options", "kind", "mark"),
    [
        ("cbigan/small", {}, "small", "small preset"),
        ("cbigan/released2021", {}, "variant", "variant"),
        ("cbigan", {"budget": "quick"}, "paper", "budget quick"),
        ("cbigan", {"length": {"max_batches": 7}}, "paper", "budget paper, 7 batches"),
        ("cbigan", {"changed": {"method.alpha": 0.5}}, "paper", "changed: method.alpha=0.5"),
        ("cbigan", {"holdout": 0.05}, "paper", "5 % held out"),
        ("cbigan", {"holdout": None}, "paper", "5 % held out"),  # what the protocols' files say
        ("cbigan", {"selection": "best epoch on the test set"}, "paper", "selection: best epoch on the test set"),
        ("egbad", {}, "paper", "our implementation of a cited baseline"),
    ],
)
def test_what_is_not_the_papers_method_at_its_budget_is_marked(results, gather, method, options, kind, mark):
    results.run(method, **options)
    (cell,) = cells(gather(results), "CBiGAN", "III", category="bottle")
    assert cell.kind == kind
    assert mark in cell.marks


@pytest.mark.parametrize(
    ("method", "paper", "table", "options"),
    [
        ("cbigan", "CBiGAN", "III", {}),
        ("cbigan", "CBiGAN", "III", {"changed": {"protocol.holdout": 0}}),
        ("pca", "CBiGAN", "III", {"changed": {"protocol.holdout": 0}}),
        ("cbigan/literal", "CBiGAN", "III", {"changed": {"method.alpha.texture": 1e-4, "protocol.holdout": 0}}),
        ("igd/literal", "IGD", "S1", {"pretraining": "simclr"}),
        ("pwae/strict", "P-WAE", "II", {"pretraining": "imagenet"}),
        ("ssae", "SSAE", "3", {"holdout": 0.05}),
        ("ssae/literal", "SSAE", "3", {"holdout": 0.05}),
    ],
)
def test_what_follows_the_paper_has_no_mark(results, gather, method, paper, table, options):
    results.run(method, **options)
    if method == "pca":  # it stands where a value of ours does
        results.run("cbigan")
    found = [cell for cell in cells(gather(results), paper, table, category="bottle") if cell.variant.method == method]
    assert found
    for cell in found:
        assert {*cell.marks} <= {"trivial baseline", "transductive threshold"}
        assert cell.kind == ("trivial" if method == "pca" else "literal" if "/" in method else "paper")
        assert published.display(cell)["our run"].split(" ")[0] == method


def test_a_paper_that_holds_rows_out_itself_marks_the_run_that_does_not(results, gather):
    results.run("ssae", holdout=0)
    (cell,) = cells(gather(results), "SSAE", "3", category="bottle")
    assert "0 % held out, the paper's is 5 %" in cell.marks


def test_a_table_may_ask_for_another_network_of_a_baseline(results, gather):
    values = {"labelled_ratio": 0.039, "labelled_classes": ["Infiltration"]}
    for method, seed in (("deep_sad", 0), ("deep_sad/esad", 1)):
        options = {"protocol": "semi_supervised", "values": values, "pretraining": "autoencoder"}
        results.run(method, "nih_chest_xray/ap", seed, {"image_auroc": 0.6}, **options)
    found = cells(gather(results), "ESAD", "2", dataset="NIH (AP)")
    assert {cell.variant.method: cell.kind for cell in found} == {"deep_sad": "variant", "deep_sad/esad": "paper"}


def test_runs_that_hold_out_another_share_are_never_averaged(results, gather):
    results.run("cbigan", seed=0, metrics={"image_auroc": 0.9})
    results.run("cbigan", seed=1, metrics={"image_auroc": 0.5}, holdout=0.05, suffix="-a")
    found = cells(gather(results), "CBiGAN", "III", category="bottle")
    assert [(c.value.mean, c.value.n, c.marks) for c in found] == [(0.9, 1, ()), (0.5, 1, ("5 % held out",))]


def test_oracle_numbers_stand_apart_from_the_main_ones(results, gather):
    results.run("cbigan", metrics={"image_auroc": 0.8, "oracle/image_auroc": 0.95})
    main, oracle = cells(gather(results), "CBiGAN", "III", category="bottle")
    assert (main.value.mean, main.marks) == (0.8, ())
    assert (oracle.value.mean, oracle.kind, oracle.difference) == (0.95, "oracle", None)
    assert "oracle selection" in oracle.marks


def test_a_released_programs_metric_is_marked_as_such(results, gather):
    results.run("pwae", metrics={"image_auroc": 0.7, "released/auroc": 0.9}, pretraining="imagenet")
    main, released = cells(gather(results), "P-WAE", "II", category="bottle")
    assert (main.value.mean, main.marks) == (0.7, ())
    assert released.value.mean == 0.9
    assert "released program's metric" in released.marks


def test_another_pretraining_than_the_papers_is_marked(results, gather):
    results.run("pwae")
    (cell,) = cells(gather(results), "P-WAE", "II", category="bottle")
    assert any(mark.startswith("pretraining none") for mark in cell.marks)


def test_the_transductive_accuracy_of_igd_is_computed_from_the_scores_and_marked(results, gather):
    # scaled scores 0, 0.375, 0.25, 1: one of two anomalies is above 0.5, no normal image is
    results.run("igd", pretraining="simclr")
    (cell,) = cells(gather(results), "IGD", "S1", category="bottle", metric="image accuracy (threshold 0.5)")
    assert cell.value.mean == 0.75
    assert "transductive threshold" in cell.marks
    assert published.published_marks(cell.row) == ["published: transductive threshold"]
    assert cell.row.method == "Ours - SSL"


def test_igd_rows_are_told_apart_by_pretraining(results, gather):
    results.run("igd", "mnist/3", pretraining="imagenet_kd")
    results.run("igd", "mnist/3", pretraining="none")
    contents = gather(results)
    (cell,) = cells(contents, "IGD", "S2", category="3")
    assert (cell.row.method, cell.variant.pretraining) == ("Ours - ImageNet", "imagenet_kd")


@pytest.mark.parametrize(
    ("images", "changed", "mark"),
    [
        ("own", {}, "distilled on the run's own training rows, the paper's way is ImageNet"),
        (None, {}, "distilled on the run's own training rows, the paper's way is ImageNet"),
        ("/images", {"pretraining.images": "/images"}, "distilled on /images"),
    ],
)
def test_what_an_encoder_was_distilled_on_is_marked_and_never_as_a_change(results, gather, images, changed, mark):
    folder = results.run("igd", "mnist/3", pretraining="imagenet_kd", changed=changed)
    config = yaml.safe_load((folder / ".hydra" / "config.yaml").read_text())
    config["pretraining"]["images"] = images
    (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config))
    (cell,) = cells(gather(results), "IGD", "S2", category="3")
    assert cell.marks == (mark,)


def test_igd_to_the_letter_answers_the_papers_rows_without_a_mark(results, gather):
    results.run("igd/literal", "mnist/3", pretraining="imagenet_kd")
    (cell,) = cells(gather(results), "IGD", "S2", category="3")
    assert cell.marks == ()


def test_ablations_answer_their_own_rows(results, gather):
    results.run("igd/rec", "cifar10/0", pretraining="imagenet_kd", protocol="contaminated", values={"ratio": 0.1})
    (cell,) = cells(gather(results), "IGD", "5")
    assert (cell.row.method, cell.row.setting) == ("REC (MS-SSIM+MAE)", "10% contamination (AC)")
    assert cell.marks == ("1 of 10",)


def test_a_row_that_asks_for_changed_values_takes_only_runs_that_changed_them(results, gather):
    semi = {"protocol": "semi_supervised", "values": {"labelled_ratio": 0.01, "labelled_classes": 1}}
    results.run("esad", "odds/cardio", 0, {"image_auroc": 0.9}, **semi)
    changed = {"method.phi.permutation": False}
    results.run("esad", "odds/cardio", 0, {"image_auroc": 0.8}, changed=changed, suffix="-a", **semi)
    found = {c.row.method: c for c in cells(gather(results), "ESAD", "4")}
    assert {name: c.value.mean for name, c in found.items()} == {
        "+EDE+Lass+Gaussian+Permutation": 0.9, "+EDE+Lass+Gaussian": 0.8,
    }  # fmt: skip
    assert found["+EDE+Lass+Gaussian"].marks == ()


def test_esads_experiments_are_pooled_as_the_paper_pools_them(results, gather):
    for k, value in ((1, 0.9), (2, 0.8), (3, 0.7)):
        results.run(
            "esad/mnist", "mnist/0", 0, {"image_auroc": value}, protocol="semi_supervised", suffix=f"-{k}",
            values={"labelled_ratio": 0.05, "labelled_classes": [k]}, changed={"protocol.labelled_classes": [k]},
        )  # fmt: skip
    (cell,) = cells(gather(results), "ESAD", "1", setting="gamma_l=.05; gamma_p=0; k_l=1")
    assert value_of(cell) == (0.8, 0.1, 3)
    assert cell.marks == ("3 of 90",)


def test_jpeg_copies_of_cifar_are_marked_and_not_mixed_with_the_original(results, gather):
    results.run("igd", "cifar10-jpeg/0", pretraining="simclr")
    (cell,) = cells(gather(results), "IGD", "S4", category="plane")
    assert "images from JPEG copies" in cell.marks


@pytest.mark.parametrize("preset", [True, False])
def test_pwaes_capsule_layout_counts_in_its_mean(results, gather, preset):
    sides = ("data.image_size", "method.image_size")
    for category in mapping()["members"]["mvtec"]:
        method = "pwae/capsule" if preset and category == "capsule" else "pwae"
        changed = {} if preset or category != "capsule" else {key: [300, 1008] for key in sides}
        options = {"pretraining": "imagenet", "changed": changed}
        results.run(method, f"mvtec/{category}", 0, {"image_auroc": 0.6}, **options)
    (mean,) = cells(gather(results), "P-WAE", "II", category="mean")
    assert mean.complete and mean.marks == ()


def test_trivial_baselines_stand_beside_every_value(results, gather):
    results.run("cbigan", "mvtec/bottle")
    results.run("pca", "mvtec/bottle", metrics={"image_auroc": 0.97})
    results.run("brightness", "mvtec/screw")
    ours, pca = cells(gather(results), "CBiGAN", "III", category="bottle")
    assert (ours.kind, pca.kind, pca.value.mean) == ("paper", "trivial", 0.97)
    assert (pca.row, pca.difference) == (None, None)


def test_runs_that_match_no_row_are_told_apart(results, gather):
    results.run("cbigan", "textures/brick")
    results.run("cbigan", "mvtec/bottle")
    assert {line.data: line.beside_a_paper for line in gather(results).lines} == {
        "textures/brick": False, "mvtec/bottle": True,
    }  # fmt: skip


def test_runs_of_different_settings_are_never_averaged(results, gather):
    results.run("cbigan", seed=0, metrics={"image_auroc": 0.9})
    results.run("cbigan", seed=1, metrics={"image_auroc": 0.5}, changed={"method.alpha": 1}, suffix="-a")
    found = cells(gather(results), "CBiGAN", "III", category="bottle")
    assert [(c.value.mean, c.value.n) for c in found] == [(0.9, 1), (0.5, 1)]
