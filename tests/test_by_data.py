"""What a method takes by the data's kind or id, and what it takes from Python alone."""

import dataclasses
import functools
import inspect

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf

from adbench.errors import UserError
from adbench.experiment.compose import composed
from adbench.experiment.groups import choices, conf_dir
from adbench.methods.cbigan import CBiGAN


def arguments(name, kind, *words):
    """The constructor's arguments of a preset for a kind of data."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose(None, overrides=[f"+method={name}", f"+data.kind={kind}", *words])
    if "data" not in words and "image_size" in cfg.method and not any("image_size" in word for word in words):
        OmegaConf.update(cfg, "data.image_size", cfg.method.recipe.input[kind], force_add=True)
    return {k: v for k, v in OmegaConf.to_container(cfg.method, resolve=True).items() if k not in ("recipe", "id")}


def test_an_id_wins_over_a_kind_and_a_kind_stands_for_the_rest():
    screw = arguments("ssae", "object", "+data.id=mvtec/screw")
    transistor = arguments("ssae", "object", "+data.id=mvtec/transistor")
    bottle = arguments("ssae/paper_like", "object", "+data.id=mvtec/bottle")
    assert (screw["occlusion_probability"], screw["rotation_probability"]) == (0.5, 0.0)
    assert (screw["symmetries"], screw["difference"], screw["average_exponent"]) == ("rotations", "squared", 1)
    assert (transistor["occlusion_probability"], transistor["rotation_probability"]) == (0.5, 0.3)
    assert (bottle["symmetries"], bottle["difference"]) == ("all", "ssim")
    assert arguments("ssae", "texture", "+data.id=mine")["symmetries"] == "all"
    assert arguments("cbigan", "object", "+data.id=mvtec/bottle")["rotation"] == [-45.0, 45.0]
    assert arguments("cbigan", "object", "+data.id=mvtec/cable")["rotation"] == [0.0, 0.0]


def test_a_command_line_sets_the_value_of_one_kind_or_of_all():
    line = ["method=cbigan", "data=textures/brick"]
    assert composed([*line, "method.recipe.alpha.texture=0.25"]).method.alpha == 0.25
    assert composed([*line, "method.recipe.alpha.object=0.25"]).method.alpha == 1e-5
    assert composed([*line, "method.alpha=0.5"]).method.alpha == 0.5
    assert composed([*line, "+method.recipe.alpha={textures/brick:0.125}"]).method.alpha == 0.125


def test_a_kind_without_a_value_says_what_to_give():
    with pytest.raises(Exception, match=r"method.recipe.rotation has no value.*give \+method.recipe.rotation.tabular="):
        arguments("cbigan", "tabular", "+data.image_size=3")


def plain(value):
    """A default or a configuration's value in a form that compares."""
    if dataclasses.is_dataclass(value):
        value = dataclasses.asdict(value)
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, functools.partial):
        return value.func, plain(value.keywords)
    if inspect.isfunction(value):  # a schedule: compared by what it gives
        return [value(share / 16) for share in range(17)]
    return value


@pytest.mark.parametrize("name", [*[name for name in choices("method") if "/" not in name], "deep_svdd/rec"])
def test_the_constructors_defaults_are_the_base_presets_values(name):
    values = arguments(name, "object")
    target = get_class(values.pop("_target_"))
    defaults = {key: one.default for key, one in inspect.signature(target).parameters.items()}
    assert set(values) <= set(defaults)
    built = instantiate(values, _convert_="all")
    for key, value in built.items():
        if name == "egbad" and key == "alpha":
            continue  # what makes CBiGAN EGBAD
        assert plain(defaults[key]) == plain(value) or (defaults[key] is None and value == {}), key  # no options


def test_a_python_user_builds_a_method_without_any_configuration():
    method = CBiGAN(rotation=(-45, 45), alpha=1e-4, width=1, latent=4, image_size=32)
    assert method.score(torch.rand(2, 3, 32, 32)).image.shape == (2,)


def test_a_word_that_an_argument_does_not_know_is_refused():
    with pytest.raises(UserError, match=r"method.features must be first_conv or penultimate, got 'last'"):
        CBiGAN(features="last")
