"""Values that cannot be are refused by name, from the types that constructors ask for."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import OmegaConf

from adbench.experiment import values
from adbench.experiment.build import build, build_method
from adbench.experiment.checks import refuse_wrong_types
from adbench.experiment.groups import choices, conf_dir
from adbench.types import UserError


@pytest.fixture(scope="module", autouse=True)
def hydra():
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        yield


def check(line):
    loader = GlobalHydra.instance().config_loader()
    cfg = loader.load_configuration("config", line if isinstance(line, list) else line.split(), run_mode=RunMode.RUN)
    refuse_wrong_types(cfg, cfg.hydra.runtime.choices)
    return cfg


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("method=pca method.components=2.5", "components must be a whole number, as in method.components=30; got 2.5"),
        ("method=pca method.components=-3", "method.components must be a number of at least 0"),
        ("method.smoothing_k=fifteen", "method.smoothing_k must be a whole number or null; got 'fifteen'"),
        ("method.optimizer.lr=-1", "method.optimizer.lr must be a number of at least 0, as in"),
        ("method=cbigan method.optimizers.critic.betas=[2,0.9]", "must be what Adam takes (Invalid beta"),
        ("method=cbigan method.optimizers.critic.betas=[0.9]", "must be a list of 2, each a number"),
        ("method=cbigan method.kernels=random", "must be one of glorot_uniform, he_normal"),
        ("method=cbigan method.recipe.alpha.texture=x", "method.alpha must be a number"),
        ("method=cbigan method.rotation=3", "method.rotation must be a list, each a number"),
        ("method=cbigan method.schedule=3", "method.schedule must be a mapping with a _target_ or null"),
        ("method=cbigan method.latent=null", "method.latent must be a whole number, as in method.latent=64; got null"),
        ("method=igd method.scales=[global,lokal]", "method.scales must be a list, each one of global, local"),
        ("method=igd method.zeta=uniformly", "method.zeta must be a number or uniform"),
        ("method.optimizer=adam", "method.optimizer must be a mapping with a _target_"),
        ("method=cbigan method.lambda_=nan", "method.lambda_ must be a finite number"),
        ("trainer.precision=bf17", "trainer.precision must be one of 64, 32, 16,"),
        ("trainer.threads=0", "trainer.threads must be a whole number of at least 1 or null"),
        ("protocol=contaminated protocol.ratio=nan", "must be a finite number, as in protocol.ratio=0.1; got nan"),
        ("protocol=contaminated protocol.ratio=-0.1", "protocol.ratio must be a number of at least 0"),
        ("protocol=contaminated protocol.ratio=2.0", "protocol.ratio must be a share from 0 to 1"),
        ("protocol.holdout=lots", "protocol.holdout must be a number"),
        ("pretraining=simclr pretraining.epochs=2.5", "pretraining.epochs must be a whole number"),
        ("pretraining=simclr pretraining.temperature=inf", "pretraining.temperature must be a finite number"),
        ("data.workers=many", "data.workers must be a whole number of at least 0 or auto, as in data.workers=auto"),
        ("data.batch_size=0", "data.batch_size must be a whole number of at least 1"),
        ("data.image_size=big", "data.image_size must be a whole number"),
        ("data.source.train=3.5", "data.source.train must be a whole number"),
        ("data=mnist data.download=maybe", "data.download must be true or false, as in data.download=false"),
        ("data=folder data.name=x data.root=/x data.normal_test=-0.2", "data.normal_test must be a number of"),
        ("budget.max_batches=1e3", "budget.max_batches must be a whole number of at least 0"),
        ("budget.max_epochs=2.5", "budget.max_epochs must be a whole number"),
        ("evaluation.quantile=95", "evaluation.quantile must be between 0 and 1"),
        ("evaluation=3", "evaluation has quantile, panels_anomalous"),
        ("log_every=0", "log_every must be a whole number of at least 1"),
        ("resume=3", "resume must be true or false"),
        ("seed=nan", "seed must be a finite number"),
        ("logger.csv.name=3", "logger.csv.name must be a word or null"),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_is_named_with_what_to_type(line, message):
    with pytest.raises(UserError, match=re.escape(message)):
        check(line)


@pytest.mark.parametrize(
    "line",
    [
        "method=cbigan method.penalty_weight=10",  # a whole number for a number
        "method=igd method.zeta=uniform",
        "method=cbigan method.schedule=null",
        "trainer.precision=16",
        "trainer.deterministic=warn",
        "overwrite=1",
        "data=npz data.name=2024 data.file=/x.npz data.normal_class=3",
        "data=folder data.name=x data.root=/x",
        "data.image_size=[64,32]",
        "protocol.holdout=0",
    ],
)
def test_values_that_can_be_pass(line):
    check(line)


@pytest.mark.parametrize("group", ["protocol", "pretraining", "budget", "trainer", "logger", "experiment", "method"])
def test_no_default_of_the_configuration_tree_is_refused(group):
    for name in choices(group)[:: 6 if group in ("method", "experiment") else 1]:
        check(f"{group}={name}")


def test_the_annotations_of_every_target_can_be_had():
    written = {t for p in conf_dir().rglob("*.yaml") for t in re.findall(r"_target_: (adbench[\w.]+)", p.read_text())}
    assert len(written) > 20
    for target in written:
        assert values.hints_of(target), target
    assert values.hints_of(values.TRAINER)["precision"]


@pytest.mark.parametrize(
    ("value", "hint", "fine"),
    [
        (True, int, False), (True, float, False), (1, bool, False), (1, float, True), (1.0, int, False),
        ("a", str, True), (3, str, False), (None, int | None, True), (None, int, False), ("x", Literal["x", "y"], True),
        ("z", Literal["x", "y"], False), (True, Literal[1], False), ("ab", Sequence[str], False),
        (["a"], Sequence[str], True),
        ([1, "a"], list[int], False), ((1, 2), tuple[int, int], True), ([1], tuple[int, int], False),
        ({"a": 1}, Mapping[str, float], True), ({"a": "b"}, Mapping[str, float], False), (3, Mapping[str, Any], False),
        ({"_target_": "x"}, Callable[[int], int], True), ("x", Callable[[int], int], False), (object(), Any, True),
        ({"_target_": "x"}, int, False),
    ],
)  # fmt: skip
def test_what_fits_a_type(value, hint, fine):
    assert values.fits(value, hint) is fine


def test_devices_that_are_not_there_are_told_before_anything_is_read(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    given = {"accelerator": "cpu", "devices": 1, "strategy": "auto", "precision": "32-true"}
    values.refuse_absent_devices(given)
    for changed, message in (
        ({"accelerator": "cuda"}, r"there is no cuda on this machine\. Type trainer=cpu"),
        ({"accelerator": "gpuu"}, "trainer.accelerator=gpuu .* invalid accelerator name"),
        ({"devices": 0}, "trainer.devices=0"),
        ({"devices": "many"}, "trainer.devices=many"),
        ({"strategy": "dpp"}, "trainer.strategy=dpp does not exist; did you mean ddp"),
    ):
        with pytest.raises(UserError, match=message):
            values.refuse_absent_devices(given | changed)


def test_whatever_a_constructor_makes_of_its_values_is_one_message():
    with pytest.raises(
        UserError, match=r"trivial\.PCAResidual cannot be built from the values that it got: .*components"
    ):
        build({"_target_": "adbench.methods.trivial.PCAResidual", "image_size": 8})
    cfg = check("method=autoencoder data=digits method.latent=0")
    with pytest.raises(UserError, match="has no entries: one of its sizes"):
        build_method(OmegaConf.create(OmegaConf.to_container(cfg, resolve=False)))
