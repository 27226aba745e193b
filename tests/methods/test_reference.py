"""The reference detectors on features."""

import csv
import json

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from sklearn.covariance import EmpiricalCovariance
from sklearn.neighbors import NearestNeighbors

from adbench.errors import UserError
from adbench.experiment.build import build_datamodule
from adbench.experiment.groups import conf_dir
from adbench.methods.knn import Knn
from adbench.methods.padim import PaDiM
from adbench.methods.patchcore import PatchCore
from adbench.methods.reference import smoothed
from adbench.networks.backbone import Backbone, TimmTrunk
from adbench.testing import Stripes, check_method, fit, images_under_test, stripes

SMALL = {
    "patchcore": lambda: PatchCore("resnet18.tv_in1k", image_size=32, coreset=0.2),
    "padim": lambda: PaDiM("resnet18.tv_in1k", image_size=32, dimensions=12),
    "knn": lambda: Knn("resnet18.tv_in1k", image_size=32),
}


@pytest.mark.parametrize("name", SMALL)
def test_a_reference_detector_keeps_the_benchs_promises(name):
    check_method(SMALL[name])


@pytest.mark.parametrize("name", ["patchcore", "padim"])
def test_a_bright_square_stands_out_even_for_random_weights(name, tmp_path):
    torch.manual_seed(0)
    method = SMALL[name]()
    data = stripes(method, 32, tmp_path)
    fit(method, data, 0)
    label = torch.tensor(Stripes(32).records.label[data.split.test])
    scores = method.score(images_under_test(data))
    assert scores.image[label == 1].min() > scores.image[label == 0].max()


def test_all_patches_in_the_bank_give_a_training_image_the_score_zero(tmp_path):
    method = PatchCore("resnet18.tv_in1k", image_size=32, coreset=1.0)
    data = stripes(method, 32, tmp_path)
    fit(method, data, 0)
    image = next(iter(data.training_batches("cpu"))).image
    assert method.score(image).image.max() < 1e-2 * method.score(1 - image).image.min()


def test_knn_is_scikit_learns(tmp_path):
    method = Knn("resnet18.tv_in1k", image_size=32, neighbours=3)
    data = stripes(method, 32, tmp_path)
    fit(method, data, 0)
    train = torch.cat([batch.image for batch in data.training_batches("cpu")])
    image = images_under_test(data)
    with torch.no_grad():
        rows, queries = method.backbone.pooled(train).numpy(), method.backbone.pooled(image).numpy()
        found = method.score(image).image
    wanted = NearestNeighbors(n_neighbors=3).fit(rows).kneighbors(queries)[0].mean(1)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-4)


def test_patchcores_distances_are_scikit_learns(tmp_path):
    torch.manual_seed(0)
    method = PatchCore("resnet18.tv_in1k", image_size=32, coreset=1.0, neighbours=1, sigma=0.0)
    data = stripes(method, 32, tmp_path)
    fit(method, data, 0)
    train = torch.cat([batch.image for batch in data.training_batches("cpu")])
    image = images_under_test(data)
    with torch.no_grad():
        rows, queries = method._patches(train)[0].numpy(), method._patches(image)[0].numpy()
        found = method.score(image).image
    distance = NearestNeighbors(n_neighbors=1).fit(rows).kneighbors(queries)[0].reshape(len(image), -1)
    np.testing.assert_allclose(found.numpy(), distance.max(1), rtol=1e-3)


def test_padims_distances_are_those_of_scikit_learns_gaussians(tmp_path):
    torch.manual_seed(0)
    method = PaDiM("resnet18.tv_in1k", image_size=32, dimensions=4, sigma=0.0)
    data = stripes(method, 32, tmp_path)
    fit(method, data, 0)
    train = torch.cat([batch.image for batch in data.training_batches("cpu")])
    image = images_under_test(data)
    with torch.no_grad():
        rows, queries = (method._embedding(x)[0].double().numpy() for x in (train, image))
        found = method.score(image).image
    distance = np.zeros((len(image), rows.shape[1]))
    for place in range(rows.shape[1]):
        gaussian = EmpiricalCovariance().fit(rows[:, place])
        covariance = gaussian.covariance_ * len(train) / (len(train) - 1) + method.epsilon * np.eye(4)  # Eq. 1
        away = queries[:, place] - gaussian.location_
        distance[:, place] = np.sqrt(np.einsum("nd,de,ne->n", away, np.linalg.inv(covariance), away))
    height = int(distance.shape[1] ** 0.5)
    maps = torch.from_numpy(distance).float().view(-1, 1, height, height)
    wanted = smoothed(maps, (32, 32), 0.0).flatten(1).max(1).values
    np.testing.assert_allclose(found.numpy(), wanted.numpy(), rtol=1e-3)


def test_padims_gaussians_do_not_depend_on_how_many_are_inverted_at_once(tmp_path, monkeypatch):
    found = []
    for block in (3, 1000):
        monkeypatch.setattr("adbench.methods.padim.BLOCK", block)
        torch.manual_seed(0)
        method = SMALL["padim"]()
        fit(method, stripes(method, 32, tmp_path), 0)
        found.append(method.white)
    assert len(found[0]) > 3
    torch.testing.assert_close(*found, rtol=1e-6, atol=0)


@pytest.mark.parametrize("protocol", ["contaminated", "semi_supervised"])
def test_a_bank_holds_the_unlabelled_rows_and_no_known_anomaly(protocol, tmp_path):
    options = [f"cache_dir={tmp_path}", "method=knn/small", "data=digits", "data.image_size=32", f"protocol={protocol}"]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("config", overrides=options)
    seen, data = (build_datamodule(cfg, supervision) for supervision in ("semi", "unsupervised"))
    train = [row for row in seen.split_table() if row["role"] == "train"]
    known = sum(row["semi_label"] == -1 for row in train)
    hidden = sum(row["label"] == 1 and row["semi_label"] == 0 for row in train)
    assert (known > 0, hidden > 0) == ((True, False) if protocol == "semi_supervised" else (False, True))
    data.setup()
    detector = fit(Knn("resnet18.tv_in1k", image_size=data.size), data, 0)
    assert len(detector.bank) == len(train) - known
    for make in (SMALL["patchcore"], SMALL["padim"]):
        method = fit(make(), data, 0)
        with torch.no_grad():
            assert torch.isfinite(method.score(images_under_test(data)[:8]).image).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_a_run_that_stops_in_its_test_goes_on_with_the_bank_that_it_had(name, run, monkeypatch):
    def scores(folder):
        with (folder / "scores.csv").open() as file:
            return [row["score"] for row in csv.DictReader(file)]

    line = (f"method={name}/small", "method.backbone=resnet18.tv_in1k", "data=mvtec/bottle", "data.image_size=32")
    code, folder = run(*line)
    assert code == 0
    wanted = scores(folder)
    kind = {"patchcore": PatchCore, "padim": PaDiM, "knn": Knn}[name]

    def stopped(*_):
        raise RuntimeError("it broke")

    with monkeypatch.context() as patched:
        patched.setattr(kind, "test_step", stopped)
        assert run(*line, "overwrite=true")[0] != 0
    assert json.loads((folder / "metrics.json").read_text())["status"] == "failed"
    monkeypatch.setattr(kind, "prepare", lambda *_: pytest.fail("the bank is made anew"))
    code, folder = run(*line)
    assert code == 0
    assert scores(folder) == wanted


def test_the_backbone_never_trains_and_a_row_never_sees_another():
    backbone = Backbone("resnet18.tv_in1k", (1, 2), 32).train()
    assert not any(p.requires_grad for p in backbone.parameters())
    image = torch.rand(3, 3, 32, 32)
    before = backbone.network.bn1.running_mean.clone()
    together, alone = backbone(image), backbone(image[:1])
    assert torch.equal(before, backbone.network.bn1.running_mean)
    assert [tuple(one.shape[1:]) for one in together] == [(64, 8, 8), (128, 4, 4)]
    torch.testing.assert_close(together[1][:1], alone[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "mobilenetv3_small_050", "resnet10t"])
def test_networks_of_a_fixed_size_and_with_a_layer_above_the_last_map_are_backbones_and_trunks_too(name):
    image = torch.rand(2, 3, 64, 64)
    backbone, trunk = Backbone(name, (2, 3), 64), TimmTrunk(name, "the trunk", 64).eval()
    assert backbone.pooled(image).shape == (2, backbone.encoder().features)
    assert [one.shape[1] for one in backbone(image)] == backbone.channels
    assert trunk(image).shape == (2, trunk.features)


def test_wrong_names_and_stages_are_refused_with_what_there_is():
    with pytest.raises(UserError, match="no timm model"):
        Backbone("resnet1", (2,), 32)
    with pytest.raises(UserError, match="stride 32"):
        Backbone("resnet18.tv_in1k", (7,), 32)
    with pytest.raises(UserError, match="coreset"):
        PatchCore("resnet18.tv_in1k", coreset=0.0)


def test_smoothing_keeps_a_constant_and_spreads_a_point():
    assert torch.allclose(smoothed(torch.full((1, 1, 4, 4), 2.0), (16, 16), 4.0), torch.tensor(2.0))
    point = torch.zeros(1, 1, 16, 16)
    point[0, 0, 8, 8] = 1.0
    maps = smoothed(point, (16, 16), 1.0)
    assert maps[0, 0, 8, 8] == maps.max() < 0.2
    torch.testing.assert_close(maps.sum(), torch.tensor(1.0))
