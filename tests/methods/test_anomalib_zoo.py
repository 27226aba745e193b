"""What adbench says of anomalib's models where anomalib is not installed."""

import importlib
import importlib.util
import logging
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch
from compositions import composed
from hydra.utils import get_class
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import nn

from adbench.experiment import provenance
from adbench.experiment.build import build_method
from adbench.experiment.groups import choices
from adbench.methods.anomalib_host import StandIn, bars_on_terminals, listed, modest
from adbench.methods.anomalib_model import AnomalibModel
from adbench.methods.anomalib_zoo import MODELS, usable
from adbench.networks.encoder import PretrainableEncoder
from adbench.pretraining.imagenet import ImageNet
from adbench.run import main
from adbench.types import UserError

NAMES = [name for name in choices("method") if name.startswith("anomalib/")]
REFUSED = sorted(name for name, model in MODELS.items() if model.refused)


@pytest.fixture
def without_anomalib(monkeypatch):
    monkeypatch.setitem(sys.modules, "anomalib", None)
    monkeypatch.setitem(sys.modules, "anomalib.models.image", None)


def test_a_missing_package_is_named_with_what_installs_it(without_anomalib):
    with pytest.raises(UserError, match=r'needs anomalib: pip install "adbench-vision\[anomalib\]"'):
        AnomalibModel("Padim")


@pytest.mark.parametrize("model", [None, "Paddim"])
def test_a_model_that_there_is_not_is_answered_with_those_that_there_are(model, without_anomalib):
    with pytest.raises(UserError) as refusal:
        AnomalibModel(model)
    assert all(name in str(refusal.value) for name in usable())


@pytest.mark.parametrize(
    ("model", "meant"), [("padim", "Padim"), ("Paddim", "Padim"), ("reverse_distillation", "ReverseDistillation")]
)
def test_a_model_that_is_nearly_named_is_guessed(model, meant, without_anomalib):
    with pytest.raises(UserError, match=rf"did you mean {meant}\?"):
        AnomalibModel(model)


def test_importing_anomalib_makes_no_logger_louder():
    from lightning_utilities.core import rank_zero

    theirs, stream = logging.getLogger("lightning"), logging.StreamHandler()
    with modest():  # what importing `lightning` does
        rank_zero.log = logging.getLogger("lightning.pytorch.utilities.rank_zero")
        theirs.addHandler(stream)
        theirs.setLevel(logging.INFO)
    assert rank_zero.log.name == "pytorch_lightning.utilities.rank_zero"
    assert theirs.level == logging.getLogger("anomalib").level == logging.WARNING
    assert stream not in theirs.handlers


def test_a_log_gets_no_progress_bar_of_others(capsys):
    from tqdm import tqdm

    with bars_on_terminals():
        assert list(tqdm(range(3))) == [0, 1, 2] and "3/3" not in capsys.readouterr().err
    assert list(tqdm(range(3))) == [0, 1, 2] and "3/3" in capsys.readouterr().err


def test_the_command_takes_a_model_and_its_options_by_name(without_anomalib, capsys, tmp_path):
    words = ["method=anomalib", "method.model=Padim", "method.options={backbone: resnet18, layers: [layer1]}"]
    assert main([*words, "data=mvtec/bottle", "data_root=/nowhere", f"results={tmp_path}"]) == 1
    assert "adbench-vision[anomalib]" in "".join(capsys.readouterr()).replace("\n", " ")


@pytest.mark.parametrize("model", REFUSED)
def test_a_model_that_needs_a_download_of_its_own_is_refused_before_any_data_are_read(model, capsys, tmp_path):
    words = ["method=anomalib", f"method.model={model}", "data=mvtec/bottle", "data_root=/nowhere"]
    assert main([*words, f"results={tmp_path}", f"cache_dir={tmp_path}"]) == 1
    said = "".join(capsys.readouterr())
    assert f"method.model={model} is not offered: {MODELS[model].refused}" in said.replace("\n", " ")
    assert "/nowhere" not in said and not list(tmp_path.rglob("metrics.json"))


@pytest.mark.parametrize("name", NAMES)
def test_a_configuration_composes_and_names_a_model_that_there_is(name):
    cfg = composed(f"method={name}", "data=mvtec/bottle", "data_root=/nowhere")
    values = OmegaConf.to_container(cfg.method, resolve=True, throw_on_missing=True)
    assert values["model"] in usable()
    assert get_class(values["_target_"]) is AnomalibModel
    lengths = {length for part in values["recipe"]["budget"].values() for length in part.values()}
    assert (lengths == {0}) == MODELS[values["model"]].bank


def test_every_model_that_there_is_has_a_configuration():
    models = [composed(f"method={name}").method.model for name in NAMES if name.count("/") == 1]
    assert sorted(models) == usable()


def test_the_table_of_settings_is_what_the_files_say():
    place = Path(__file__).parents[1] / "adapters" / "contract.py"
    spec = importlib.util.spec_from_file_location("contract", place)
    contract = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(contract)
    assert contract.settings() == contract.between(contract.PAGE.read_text(), "settings")


def test_building_a_configuration_without_the_package_is_one_message(without_anomalib):
    with pytest.raises(UserError, match=r"adbench-vision\[anomalib\]"):
        build_method(composed("method=anomalib/stfpm", "data=mvtec/bottle", "data_root=/nowhere"))


def test_a_run_of_anomalib_records_its_version_and_another_does_not(monkeypatch):
    metadata = importlib.import_module("importlib.metadata")
    known = metadata.version

    def version(name):
        return "2.7.0" if name == "anomalib" else known(name)

    monkeypatch.setattr(metadata, "version", version)
    assert provenance.versions("adbench.methods.anomalib_model.AnomalibModel")["anomalib"] == "2.7.0"
    assert "anomalib" not in provenance.versions("adbench.methods.ssae.SSAE")


def test_a_package_that_is_not_installed_has_no_version(monkeypatch):
    def version(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(importlib.import_module("importlib.metadata"), "version", version)
    assert set(provenance.versions("adbench.methods.anomalib_model")) == {"adbench", "python"}


class Method:
    """What the stand-in asks of a method."""

    total_batches, batches_seen, batches_per_epoch, rows_per_batch = 25, 13, 6, 4


def test_an_epoch_of_the_stand_in_is_one_pass_through_the_rows():
    trainer = StandIn(Method())
    assert (trainer.max_epochs, trainer.current_epoch, trainer.global_step) == (5, 2, 13)
    assert len(trainer.train_dataloader) == len(trainer.datamodule.train_dataloader()) == 6


def test_optimizers_and_schedules_are_found_in_every_form_that_lightning_takes():
    weight = nn.Parameter(torch.zeros(1))
    one, two = (torch.optim.SGD([weight], 0.1) for _ in range(2))
    plan = torch.optim.lr_scheduler.StepLR(one, 3)
    by_step = {"scheduler": plan, "interval": "step"}
    assert listed(None) == ([], [])
    assert listed(one) == ([one], [])
    assert listed([one, two]) == ([one, two], [])
    assert listed(([one], [plan])) == ([one], [(plan, "epoch")])
    assert listed(([one, two], [by_step])) == ([one, two], [(plan, "step")])
    assert listed({"optimizer": one, "lr_scheduler": plan}) == ([one], [(plan, "epoch")])
    both = ({"optimizer": one, "lr_scheduler": by_step}, {"optimizer": two})
    assert listed(both) == ([one, two], [(plan, "step")])


def test_a_file_fills_an_encoder_that_has_no_published_weights(tmp_path):
    network, file = nn.Linear(3, 2), tmp_path / "teacher.safetensors"
    weights = {"weight": torch.ones(2, 3), "bias": torch.ones(2)}
    save_file(weights, file)

    class Holder:
        def encoders(self):
            return {"teacher": PretrainableEncoder(network, 2, 8)}

    with pytest.raises(UserError, match=r"no published weights.*pretraining.checkpoint=FILE"):
        ImageNet(None).check(Holder())
    pretraining = ImageNet(str(file))
    pretraining.check(Holder())
    assert torch.equal(network.weight, weights["weight"])
    assert pretraining.weights_used()["teacher"]["name"] == "teacher"
