"""Every name in conf/ composes, and every method is what its YAML says."""

import inspect
from types import SimpleNamespace

import pytest
from compositions import composed, folder_of
from hydra.utils import get_class
from omegaconf import OmegaConf

from adbench.experiment import identity
from adbench.experiment.groups import choices
from adbench.experiment.identity import config_hash

KIND_OF = {"object": "mvtec/bottle", "texture": "textures/grass", "small": "digits", "tabular": "odds/cardio"}

# Each detector's file beside method=pyod has its options alone: tests/methods/test_pyod_detector.py reads them all.
METHODS = [name for name in choices("method") if not name.startswith("pyod/") or name == "pyod/ecod_features"]


@pytest.mark.parametrize("name", METHODS)
def test_a_method_names_every_constructor_argument_and_no_other(name):
    cfg = composed(f"method={name}")
    node = OmegaConf.to_container(cfg.method, resolve=False)
    signature = inspect.signature(get_class(node.pop("_target_")).__init__)
    given = set(node) - {"recipe", "id"}
    wanted = set(signature.parameters) - {"self"}
    required = {n for n, p in signature.parameters.items() if p.default is p.empty} - {"self"}
    assert required <= given <= wanted


@pytest.mark.parametrize("name", METHODS)
def test_a_recipe_has_a_paper_and_a_quick_budget_and_says_what_it_takes(name):
    recipe = composed(f"method={name}").method.recipe
    assert set(recipe.input) <= set(KIND_OF)
    for budget in ("paper", "quick"):
        length = set(recipe.budget[budget]) - {"lengths"}  # per kind, for `length` to choose from
        assert len(length) == 1
        assert length <= {"max_batches", "max_epochs"}
    lengths = recipe.budget.quick.get("lengths")
    assert lengths is None or set(lengths) == set(recipe.input)


@pytest.mark.parametrize("name", choices("data"))
def test_a_data_set_composes_with_a_method_that_takes_its_kind(name):
    named = {"folder": "data.root=/r", "npz": "data.file=/f.npz", "dataset": "data.target=a.B"}
    overrides = ["data.name=n", named[name]] if name in named else []
    cfg = composed(f"data={name}", "method=brightness", *overrides)
    assert cfg.data.kind in KIND_OF
    if cfg.data.kind in cfg.method.recipe.input:
        data = OmegaConf.to_container(cfg.data, resolve=True, throw_on_missing=True)
        assert data["image_size"]
        assert data["id"]


@pytest.mark.parametrize("group", ["protocol", "budget", "trainer", "logger"])
def test_every_choice_of_a_group_composes_and_resolves(group):
    for name in choices(group):
        values = OmegaConf.to_container(composed(f"{group}={name}")[group], resolve=True)
        assert values, name


def test_the_folder_is_readable_and_plain_for_the_defaults():
    assert folder_of("method=brightness", "data=mvtec/bottle") == "brightness/mvtec/bottle/one_class/none/seed0"


def test_what_changes_the_result_changes_the_folder_and_what_does_not_does_not():
    plain = folder_of("method=pca")
    assert folder_of("method=pca", "method.components=7") != plain
    assert folder_of("method=pca", "method.components=30") == plain
    assert folder_of("method=pca", "data.batch_size=3") != plain
    assert folder_of("method=pca", "trainer.precision=bf16-mixed") != plain
    assert folder_of("method=pca", "trainer=smoke") != plain or composed("method=pca").budget.max_batches == 0
    for option in ("data.workers=2", "results=/elsewhere", "data_root=/elsewhere", "cache_dir=/c", "resume=false",
                   "overwrite=true", "logger=tensorboard", "data.eval_batch_size=3", "trainer.threads=1",
                   "data.cache=none", "data.cache=memory"):  # fmt: skip
        assert folder_of("method=pca", option) == plain, option


def test_loaders_of_the_same_files_compose_once_and_anew_when_a_file_changes(tmp_path):
    class Loader:
        composed = 0

        def get_search_path(self):
            return self

        def get_path(self):
            return [SimpleNamespace(path=f"file://{tmp_path}"), SimpleNamespace(path="pkg://hydra.conf")]

        def __str__(self):
            return "one"

        def load_configuration(self, *_arguments, **_options):
            Loader.composed += 1
            return OmegaConf.create({"value": Loader.composed})

    (tmp_path / "config.yaml").write_text("a: 1\n")
    first = identity._composed(Loader(), ("x=1",))
    first.value = 7
    assert identity._composed(Loader(), ("x=1",)).value == 1 and Loader.composed == 1
    (tmp_path / "config.yaml").write_text("a: 12\n")
    assert identity._composed(Loader(), ("x=1",)).value == 2
    identity._compositions.clear()


def test_what_the_readable_id_tells_is_not_hashed_again():
    assert folder_of("method=pca", "data=cifar10", "data.normal_class=3").endswith("pca/cifar10/3/one_class/none/seed0")


TABLE = ("method=kde", "data=tabular", "data.name=t", "data.file=t.csv", "data.features=3")


@pytest.mark.parametrize("line, keys, silent, loud", [
    (("method=pca",), ("protocol.duplicates",), ["warn", "refuse"], "drop"),
    (TABLE, ("data.label", "data.source.label"), ["null"], "y"),
])  # fmt: skip
def test_a_key_that_came_later_leaves_hash_and_folder_as_they_were_unless_it_changes_the_result(
    line, keys, silent, loud
):
    without = composed(*line)
    OmegaConf.set_struct(without, False)
    for key in keys:
        group, name = key.rsplit(".", 1)
        del OmegaConf.select(without, group)[name]
    for value in silent:
        assert config_hash(composed(*line, f"{keys[0]}={value}")) == config_hash(without)
        assert folder_of(*line, f"{keys[0]}={value}") == folder_of(*line)
    assert config_hash(composed(*line, f"{keys[0]}={loud}")) != config_hash(without)
    assert folder_of(*line, f"{keys[0]}={loud}") != folder_of(*line)


def test_a_long_name_gives_a_folder_that_file_systems_take_and_two_long_names_give_two():
    folders = [
        folder_of("method=brightness", "data=folder", f"data.name={'x' * 300}{end}", "data.root=/r") for end in "ab"
    ]
    assert folders[0] != folders[1]
    assert max(len(part.encode()) for folder in folders for part in folder.split("/")) <= 120
    assert (
        folder_of("method=brightness", "data=folder", f"data.name={'x' * 120}", "data.root=/r").split("/")[1]
        == "x" * 120
    )
