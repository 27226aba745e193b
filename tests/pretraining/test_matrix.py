"""Method x pretraining on tiny inputs: a pair trains the encoder or says, before data is read, why it cannot."""

import pytest
import timm
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from safetensors.torch import save_file
from test_contract import make

from adbench import runs
from adbench.run import choices
from adbench.types import UserError


def smallest() -> list[str]:
    """One config of every method: its small preset where it has one."""
    names = choices("method")
    bases = [name for name in names if "/" not in name]
    return [f"{base}/small" if f"{base}/small" in names else base for base in bases]


PRETRAININGS = [name for name in choices("pretraining") if name != "none"]
#: What a test can afford, beside two batches: views and teacher's images of a few pixels.
SHORT = {"imagenet_kd": {"batch_size": 2, "teacher_side": 32}}


@pytest.fixture(scope="module")
def teacher_file(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "resnet18.safetensors"
    save_file(timm.create_model("resnet18.tv_in1k", pretrained=False).state_dict(), path)
    return str(path)


def build(name, teacher_file):
    with initialize_config_dir(str(runs.conf_dir()), version_base="1.3"):
        cfg = compose(None, overrides=[f"+pretraining={name}"])
    options = OmegaConf.to_container(cfg.pretraining, resolve=True) | SHORT.get(name, {"batch_size": 4})
    if name.startswith("imagenet"):
        options["checkpoint"] = teacher_file
    if name == "imagenet":
        del options["batch_size"]
    del options["id"]
    return instantiate(options, _convert_="all")


@pytest.mark.parametrize("pretraining", PRETRAININGS)
@pytest.mark.parametrize("name", smallest())
def test_a_pretraining_changes_the_encoder_or_is_refused_with_another_way(name, pretraining, teacher_file, tmp_path):
    method, datamodule = make(name, tmp_path)
    acts = build(pretraining, teacher_file)
    shown = method.encoders() if hasattr(method, "encoders") else {}
    possible = bool(shown) and all(
        encoder.side is not None or pretraining == "autoencoder" for encoder in shown.values()
    )
    if pretraining == "imagenet":
        possible = possible and all(encoder.published for encoder in shown.values())
    if not possible:
        with pytest.raises(UserError, match=r"pretraining=\w+"):
            acts.check(method)
        return
    before = {key: [p.detach().clone() for p in encoder.network.parameters()] for key, encoder in shown.items()}
    acts.check(method)
    acts(method, datamodule, cache_dir=tmp_path, seed=0, max_batches=1)
    for key, encoder in method.encoders().items():
        after = list(encoder.network.parameters())
        assert any(not torch.equal(a, b) for a, b in zip(after, before[key], strict=True)), key
        assert all(torch.isfinite(p).all() for p in after)
    assert torch.isfinite(method.eval().score(next(iter(datamodule.training_batches("cpu"))).image).image).all()
