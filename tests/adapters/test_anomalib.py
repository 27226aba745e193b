"""anomalib's models as methods: the contract table, weights, options, and a run by the commands."""

import csv
import importlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("anomalib", reason="`make test-adapters` installs it")

from adbench import testing
from adbench.losses.neighbours import nearest
from adbench.methods.anomalib_model import AnomalibModel, AnomalibTraining
from adbench.methods.anomalib_zoo import MODELS, usable
from adbench.networks.backbone import timm_model
from adbench.pretraining.imagenet import ImageNet
from adbench.types import UserError

pytestmark = pytest.mark.adapters

spec = importlib.util.spec_from_file_location("contract", Path(__file__).parent / "contract.py")
contract = importlib.util.module_from_spec(spec)
spec.loader.exec_module(contract)

RESNET = {"backbone": "resnet18"}


def test_the_contract_table_of_the_page_is_what_running_every_model_gives():
    table = contract.measured(usable())
    for model, found in table.items():
        print(model, found["reasons"])
    assert contract.as_markdown(table) == contract.between(contract.PAGE.read_text(), "contract")
    kept = {model: [c for c in contract.COLUMNS if found[c] == "no"] for model, found in table.items()}
    assert [model for model, broken in kept.items() if broken and model not in contract.NOTES] == []


def test_the_frozen_list_is_that_of_the_installed_package():
    from anomalib.models import image
    from anomalib.models.components import MemoryBankMixin

    assert sorted(MODELS) == sorted(image.__all__)
    banks = {name for name in image.__all__ if issubclass(getattr(image, name), MemoryBankMixin)}
    assert {name for name, model in MODELS.items() if model.bank} == banks


def test_nothing_of_anomalib_is_imported_before_a_model_is_chosen():
    code = "import sys, adbench.methods.anomalib_model; print({'anomalib', 'lightning'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbon": "resnet18"}, r"method.options.backbon is no option of anomalib's Padim; it takes backbone"),
        ({"backbone": "resnet19"}, r"method.options.backbone=resnet19 is no timm model"),
        (RESNET | {"layers": ["layer1", "blocks.2"]}, r"resnet18 has no blocks.2; its layers are .*layer1"),
        ({"pre_processor": False}, r"method.options.pre_processor is no option"),
    ],
)
def test_an_option_that_a_model_has_not_is_named_with_those_that_it_has(options, message):
    with pytest.raises(UserError, match=message):
        AnomalibModel("Padim", RESNET | {"layers": ["layer1"], "n_features": 4} | options, 64)


def test_a_value_that_a_model_refuses_is_told_with_its_options():
    with pytest.raises(UserError, match=r"anomalib's Padim cannot be built with method.options=\{.*n_features: 9999\}"):
        AnomalibModel("Padim", RESNET | {"layers": ["layer1"], "n_features": 9999}, 64)


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("Patchcore", RESNET | {"coreset_sampling_ratio": 2}, r"cannot be fitted after .*the coreset would have .* of"),
        ("Patchcore", RESNET | {"num_neighbors": 0}, r"cannot score after .*num_neighbors: 0"),
        ("Dfkde", RESNET, r"needs 16 training rows \(method.options.n_pca_components\), and gets \d"),
    ],
)
def test_a_bank_that_does_not_fit_its_rows_is_told_before_the_test(model, options, message, tmp_path):
    method = AnomalibModel(model, options, 64)
    with pytest.raises(UserError, match=rf"anomalib's {model} {message}"):
        testing.fit(method, testing.stripes(method, 64, tmp_path), 0)


def test_a_single_training_row_has_no_covariance_and_the_message_says_how_many_there_were(tmp_path):
    method = AnomalibModel("Padim", RESNET | {"layers": ["layer1"], "n_features": 8}, 64)
    rows = next(iter(prepared(testing.stripes(method, 64, tmp_path)).training_batches("cpu")))
    with pytest.raises(UserError, match="Padim gives a score that is no finite number after 1 training rows; add"):
        method.prepare([type(rows)(*(part[:1] for part in rows))])


def prepared(data):
    data.setup()
    return data


def test_a_supervised_mode_that_needs_masks_is_refused():
    with pytest.raises(UserError, match="learns from masks of defects"):
        AnomalibModel("Supersimplenet", RESNET | {"supervised": True}, 128)


@pytest.mark.parametrize(
    ("model", "images", "message"),
    [
        ("Draem", None, r"Draem needs textures.*method.images=DIR, or method.images=noise"),
        ("EfficientAd", None, r"EfficientAd needs images of anything but the object.*method.images=DIR$"),
        ("EfficientAd", "noise", r"method.images=noise has no images"),
        ("Stfpm", "noise", r"learns from the training rows alone"),
    ],
)
def test_images_that_a_model_needs_are_asked_for_before_any_data_are_read(model, images, message):
    with pytest.raises(UserError, match=message):
        AnomalibModel(model, RESNET if model == "Stfpm" else None, 64, images).check_inputs()


def lite(model, **options):
    layers = {"layers": ["blocks.1", "blocks.2"]}
    return AnomalibModel(model, {"backbone": "tf_efficientnet_lite0.in1k"} | layers | options, 64)


def test_a_backbone_gets_the_published_weights_and_pixels_as_these_want_them():
    method = lite("Padim", n_features=8)
    pretraining = ImageNet(None)
    pretraining.check(method)
    pretraining(method, None)
    used = pretraining.weights_used()["backbone"]
    assert used["name"] == "tf_efficientnet_lite0.in1k" and used["origin"].startswith("package")
    whole = timm_model("tf_efficientnet_lite0.in1k", "backbone")
    other = ImageNet(None)

    class Whole:
        def encoders(self):
            from adbench.networks.encoder import PretrainableEncoder

            return {"whole": PretrainableEncoder(whole, 1280, 64, published="tf_efficientnet_lite0.in1k")}

    other.check(Whole())
    image = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        found = method.inner.model.feature_extractor(method.normalize(image))
        wanted = whole.eval().forward_intermediates((image - 0.5) / 0.5, indices=[1, 2], intermediates_only=True)
    for one, two in zip(found.values(), wanted, strict=True):
        torch.testing.assert_close(one, two)


def test_random_weights_are_never_silent(caplog, tmp_path):
    method = lite("Padim", n_features=8)
    with caplog.at_level("WARNING", "adbench"):
        testing.fit(method, testing.stripes(method, 64, tmp_path), 0)
    assert "tf_efficientnet_lite0.in1k; none were loaded, so it works with random ones" in caplog.text


def test_the_coreset_leaves_no_patch_farther_than_a_random_one_does(tmp_path):
    torch.manual_seed(0)
    method = AnomalibModel("Patchcore", RESNET | {"coreset_sampling_ratio": 0.05}, 64)
    data = testing.stripes(method, 64, tmp_path)
    testing.fit(method, data, 0)
    bank = method.inner.model.memory_bank
    rows = []
    with torch.no_grad():
        for batch in data.training_batches("cpu"):
            features = method.inner.model.feature_extractor(method.normalize(batch.image))
            pooled = {name: method.inner.model.feature_pooler(value) for name, value in features.items()}
            embedding = method.inner.model.generate_embedding(pooled)
            rows.append(method.inner.model.reshape_embedding(embedding))
    rows = torch.cat(rows)
    assert len(bank) == int(0.05 * len(rows))
    chosen = rows[torch.randperm(len(rows))[: len(bank)]]
    assert nearest(rows, bank)[0].max() < nearest(rows, chosen)[0].max()


def test_a_fitted_bank_is_fitted_anew_on_other_rows(tmp_path):
    torch.manual_seed(0)
    method = AnomalibModel("Padim", RESNET | {"layers": ["layer1"], "n_features": 8}, 64)
    data = testing.stripes(method, 64, tmp_path)
    testing.fit(method, data, 0)
    image, rows = testing.images_under_test(data), list(data.training_batches("cpu"))
    with torch.no_grad():
        first = method.score(image).image
        method.prepare(rows[:1])
        second = method.score(image).image
        method.prepare(rows)
        third = method.score(image).image
    assert not torch.equal(first, second) and torch.equal(first, third)


def test_a_model_that_scores_rows_one_by_one_says_that_it_has_no_graph():
    options = contract.SMALL["Cflow"]["options"]
    assert AnomalibModel("Cflow", options, 64).no_graph == "scores its rows one by one"
    assert AnomalibModel("Stfpm", RESNET, 64).no_graph is None


def test_a_bank_has_no_training_step_and_every_other_model_has_one():
    assert type(AnomalibModel("Padim", RESNET | {"layers": ["layer1"], "n_features": 4}, 64)) is AnomalibModel
    assert type(AnomalibModel("Stfpm", RESNET, 64)) is AnomalibTraining


def test_a_run_trains_predicts_evaluates_and_exports_by_the_commands(tmp_path, capfd):
    from PIL import Image

    # By name: some of the package's functions are called like its commands.
    run, predict, evaluate, export = (
        importlib.import_module(f"adbench.{name}") for name in ("run", "predict", "evaluate", "export")
    )
    rng = np.random.default_rng(0)
    for part, count in (("train/good", 6), ("test/good", 2), ("test/broken", 2)):
        folder = tmp_path / "data" / "mvtec" / "bottle" / part
        folder.mkdir(parents=True)
        for k in range(count):
            image = testing.striped(rng, 64)
            if "broken" in part:
                image[10:30, 10:30] = 255
            Image.fromarray(image).save(folder / f"{k:03}.png")
            if "broken" in part:
                masks = tmp_path / "data" / "mvtec" / "bottle" / "ground_truth" / "broken"
                masks.mkdir(parents=True, exist_ok=True)
                mask = np.zeros((64, 64), np.uint8)
                mask[10:30, 10:30] = 255
                Image.fromarray(mask).save(masks / f"{k:03}_mask.png")
    words = ["method=anomalib/stfpm/small", "data=mvtec/bottle", f"data_root={tmp_path / 'data'}", "trainer=smoke",
             f"results={tmp_path / 'runs'}", f"cache_dir={tmp_path / 'cache'}", "data.image_size=64",
             "data.batch_size=2", "pretraining=imagenet"]  # fmt: skip
    assert run.main(words) == 0
    text = "".join(capfd.readouterr())
    assert "GPU available" not in text and "litlogger" not in text and "Initializing" not in text
    assert run.main([*(word for word in words if "stfpm" not in word), "method=anomalib/ganomaly"]) == 1
    assert "an encoder to fill, and anomalib's Ganomaly has none" in "".join(capfd.readouterr())
    folder = next((tmp_path / "runs").rglob("metrics.json")).parent
    record = json.loads((folder / "metrics.json").read_text())
    assert record["versions"]["anomalib"].startswith("2.7.")
    assert record["pretraining_weights"]["backbone"]["name"] == "tf_efficientnet_lite0.in1k"
    images = str(tmp_path / "data" / "mvtec" / "bottle" / "test" / "broken")
    assert predict.main([str(folder), images, "--out", str(tmp_path / "p")]) == 0
    with (folder / "scores.csv").open() as one, (tmp_path / "p" / "scores.csv").open() as two:
        tested = {
            Path(row["path"]).name: float(row["score"]) for row in csv.DictReader(one) if row["defect"] == "broken"
        }
        predicted = {Path(row["path"]).name: float(row["score"]) for row in csv.DictReader(two)}
    assert predicted == pytest.approx(tested, rel=1e-4)
    assert evaluate.main([str(folder)]) == 0
    assert export.main([str(folder), "--out", str(tmp_path / "m.onnx")]) == 0
