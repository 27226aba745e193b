"""Configurations composed in this process, for Python and for commands other than `run`; no Hydra state is left."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException

from adbench.errors import UserError
from adbench.experiment import identity  # noqa: F401  (its resolvers, which configurations use)
from adbench.experiment.groups import conf_dir
from adbench.experiment.overrides import understood
from adbench.experiment.values import data_kinds


@contextmanager
def composing() -> Iterator[None]:
    """While open, configurations of this package and its plug-ins can be composed; then Hydra is as it was before."""
    before = HydraConfig.instance().cfg
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            yield
    finally:
        HydraConfig.instance().cfg = before


def composed(words: Sequence[str], hydra: bool = False) -> DictConfig:
    """The configuration of a command line.

    Args:
        words: as on the command line of `python -m adbench.run`.
        hydra: whether its node `hydra` is wanted; needs `composing` around it.

    Raises:
        UserError: it does not compose; the message names the word.
    """
    words = understood(words)
    try:
        if hydra:
            return compose("config", overrides=words, return_hydra_config=True)
        with composing():
            return compose("config", overrides=words)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(f"the configuration does not compose: {str(error).strip().splitlines()[0]}") from error


@contextmanager
def composed_job(words: Sequence[str]) -> Iterator[tuple[DictConfig, Path]]:
    """A job's configuration and its folder, within the surroundings that Hydra gives to a job."""
    with composing():
        cfg = composed(words, hydra=True)
        with open_dict(cfg):
            cfg.hydra.mode = RunMode.RUN
            cfg.hydra.runtime.output_dir = str(Path(cfg.hydra.run.dir).absolute())
        HydraConfig.instance().set_config(cfg)
        folder = Path(cfg.hydra.runtime.output_dir)
        with open_dict(cfg):
            del cfg["hydra"]
        yield cfg, folder


def composed_method(name: str, kind: str | None, image_size: Any, words: Sequence[str]) -> DictConfig:
    """The configuration of a method for data of a kind and a size.

    Raises:
        UserError: the method is not made for this kind, or the size is none.
    """
    first = composed([f"method={name}", "data=digits"])
    kinds = data_kinds(first.method)
    if kind is not None and kind not in kinds:
        raise UserError(f"method {name} takes data of kind {', '.join(kinds)}, got kind={kind!r}")
    kind = kind or kinds[0]
    if kind == "tabular":
        if not isinstance(image_size, int):
            raise UserError(f"method {name} takes tables here: give their number of features as image_size=D")
        return composed([f"method={name}", "data=tabular", "data.name=table", f"data.features={image_size}", *words])
    size = []
    if image_size is not None:
        numbers = [image_size] * 2 if isinstance(image_size, int) else list(image_size)
        if len(numbers) != 2 or not all(isinstance(number, int) and number > 0 for number in numbers):
            raise UserError(f"image_size is a side or [height, width] in pixels, got {image_size!r}")
        size = [f"data.image_size={image_size if isinstance(image_size, int) else numbers}"]
    return composed(
        [f"method={name}", "data=dataset", "data.name=mine", "data.target=mine", f"data.kind={kind}", *size, *words]
    )


def data_advice(cfg: DictConfig) -> dict[str, Any]:
    """What a method's configuration says of its data: the size of the images and of the batches."""
    size = cfg.data.image_size
    return {"image_size": size if isinstance(size, int) else list(size), "batch_size": int(cfg.data.batch_size)}
