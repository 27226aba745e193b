from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from adbench.data.mvtec import KINDS
from adbench.data.protocols import one_class
from adbench.experiment import own_images  # noqa: F401  (its resolvers)

CONF = Path(__file__).parents[2] / "conf"
NAMES = sorted(
    path.relative_to(CONF / "data").with_suffix("").as_posix()
    for path in (CONF / "data").rglob("*.yaml")
    if not path.name.startswith("_")
)
EXTRA = {
    "folder": ["data.name=mine", "data.root=there"],
    "dataset": ["data.name=mine", "data.target=mine.Mine"],
    "npz": ["data.name=mine", "data.file=there.npz"],
    "tabular": ["data.name=mine", "data.file=there.npz", "data.features=4"],
}


@pytest.fixture(scope="module")
def composed(tmp_path_factory):
    """Compose a configuration that has just what the data group refers to."""
    folder = tmp_path_factory.mktemp("conf")
    (folder / "config.yaml").write_text(
        f"""
        defaults: [_self_, data: digits, protocol: one_class]
        hydra: {{searchpath: ["file://{CONF}"]}}
        data_root: root
        seed: 0
        method: {{recipe: {{batch_size: 16, input: {{object: 128, texture: 512, small: 32, tabular: 1}}}}}}
        """
    )
    with initialize_config_dir(str(folder), version_base="1.3"):

        def composed(*overrides: str):
            cfg = compose("config", overrides=list(overrides))
            OmegaConf.resolve(cfg)
            return cfg

        yield composed


@pytest.mark.parametrize("name", NAMES)
def test_every_data_set_resolves_and_its_constructor_takes_its_keys(composed, name):
    import inspect

    from hydra.utils import get_class

    data = composed(f"data={name}", *EXTRA.get(name, [])).data
    assert not OmegaConf.missing_keys(data)
    assert data.kind in ("object", "texture", "small", "tabular")
    arguments = {key: value for key, value in data.source.items() if key != "_target_"}
    inspect.signature(get_class(data.source._target_)).bind(**arguments)


def test_all_fifteen_categories_are_there_with_the_kind_that_the_code_knows(composed):
    assert [name for name in NAMES if name.startswith("mvtec/")] == sorted(f"mvtec/{c}" for c in KINDS)
    for category, kind in KINDS.items():
        data = composed(f"data=mvtec/{category}").data
        assert (data.id, data.kind, data.source.category) == (f"mvtec/{category}", kind, category)
        assert data.image_size == {"object": 128, "texture": 512}[kind]  # the method's, for this kind


def test_the_normal_class_is_in_the_id_and_reaches_the_source(composed):
    data = composed("data=cifar10", "data.normal_class=3").data
    assert data.id == "cifar10/3" and data.source.normal_class == 3
    assert composed("data=npz", *EXTRA["npz"]).data.id == "mine/0"


def test_patterns_reach_the_folder(composed):
    data = composed("data=folder", *EXTRA["folder"], "data.normal=ok/*", "data.anomalous={dent: bad/*}").data
    assert data.id == "mine" and data.source.normal == "ok/*" and data.source.anomalous == {"dent": "bad/*"}


def test_embedded_textures_keep_their_size_and_seed_whatever_the_run(composed):
    data = composed("data=textures/grass", "seed=7").data
    assert data.image_size == 128 and data.source.seed == 0 and data.source.size == 128


def test_the_protocol_is_a_function_that_waits_for_records(composed):
    node = composed("data=digits", "protocol.holdout=0.1").protocol
    protocol = instantiate({key: value for key, value in node.items() if key not in ("id", "duplicates")})
    assert protocol.func is one_class and protocol.keywords == {"holdout": 0.1}
