"""Does a method keep what every command relies on? For authors of methods, as `check_estimator` is in scikit-learn.

from adbench.testing import check_method
from mypackage import Blur

def test_blur():
    check_method(lambda: Blur(sigma=2.0))
"""

from __future__ import annotations

import contextlib
import copy
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from adbench.data.datamodule import DataModule
from adbench.data.protocols import one_class
from adbench.data.records import Records
from adbench.experiment.checkpoints import SaveEvery, WholeFiles
from adbench.experiment.training import complete
from adbench.methods.base import Method
from adbench.types import Batch, Scores


class Stripes:
    """A data set in memory: soft grey stripes are normal, a bright square is the anomaly of every second test row.

    Args:
        size: side in pixels.
        train, test: rows of each part.
    """

    has_masks = True
    features: ClassVar[np.ndarray | None] = None

    def __init__(self, size: int, train: int = 8, test: int = 6) -> None:
        rng = np.random.default_rng(0)
        n = train + test
        self.images = np.stack([striped(rng, size) for _ in range(n)])
        self.masks = np.zeros((n, size, size), bool)
        side = size // 4
        for i in range(train, n, 2):
            y, x = rng.integers(0, size - side, 2)
            self.masks[i, y : y + side, x : x + side] = True
        self.images[self.masks] = 255
        self.array = self.images
        anomalous: list[bool] = [bool(mask.any()) for mask in self.masks]
        self.records = Records.of(
            [
                {"split": "train" if i < train else "test", "label": int(anomalous[i]), "path": str(i),
                 "defect": "square" if anomalous[i] else "good", "mask": "in memory" if anomalous[i] else ""}
                for i in range(n)
            ]
        )  # fmt: skip

    def read_image(self, row: int) -> np.ndarray:
        """(size, size, 3) uint8."""
        return self.images[row]

    def read_mask(self, row: int) -> np.ndarray:
        """(size, size) bool, True where anomalous."""
        return self.masks[row]

    def fingerprint(self) -> str:
        """Of shape and sum: the images are the same for the same arguments."""
        return f"stripes{self.images.shape}{self.images.sum()}"


def striped(rng: np.random.Generator, size: int) -> np.ndarray:
    """A normal image: soft grey stripes with a little noise, (size, size, 3) uint8."""
    phase, y = rng.uniform(0, 6), np.arange(size)[:, None]
    image = 120 + 40 * np.sin(y / 5 + phase) + rng.normal(0, 4, (size, size))
    return np.repeat(image.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)


def stripes(method: Method, image_size: int | Sequence[int], cache_dir: Path | str) -> DataModule:
    """`Stripes` as the data module of a method: batches of four rows, one-class protocol, seed 0.

    Args:
        method: says whether it may see known anomalies.
        image_size: side, or [height, width], of the images as the method sees them.
        cache_dir: where decoded images are kept.
    """
    side = image_size if isinstance(image_size, int) else max(image_size)
    return DataModule(
        cast(Any, Stripes(side)), partial(one_class, holdout=0.05), image_size=image_size, batch_size=4,
        eval_batch_size=4, workers=0, seed=0, cache_dir=cache_dir, supervision=method.supervision,
    )  # fmt: skip


def trains(method: Method) -> bool:
    """Whether a method learns by gradients."""
    return any(p.requires_grad for p in method.parameters())


def fit(
    method: Method,
    datamodule: DataModule,
    batches: int,
    *,
    callbacks: Sequence[pl.Callback] = (),
    precision: Any = "32-true",
    checkpoint: Path | None = None,
) -> Method:
    """Train (or prepare) and calibrate a method as a run does, on the CPU; returns it in eval mode.

    Args:
        method: untrained.
        datamodule: its data, such as `stripes` gives.
        batches: training batches; 0, or a method without gradients, prepares alone.
        callbacks, precision: of the Lightning trainer.
        checkpoint: a checkpoint to go on from.
    """
    method.total_batches = batches
    if batches and trains(method):
        start = 0
        if checkpoint is not None:
            start = int(WholeFiles().load_checkpoint(checkpoint)["batches_seen"])
        datamodule.set_budget(batches, start=start)
        trainer = pl.Trainer(
            max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, callbacks=list(callbacks), num_sanity_val_steps=0, precision=precision,
            plugins=[WholeFiles()],
        )  # fmt: skip
        trainer.fit(method, datamodule=datamodule, ckpt_path=checkpoint)
    complete(method, datamodule, "cpu")
    return method


def images_under_test(datamodule: DataModule) -> Tensor:
    """All test images, (N, C, H, W) float32 in [0, 1]."""
    return torch.cat([datamodule.on_after_batch_transfer(b, 0).image for b in datamodule.test_dataloader()])


class Relabel(pl.Callback):
    """Puts random labels (and, for methods that must be blind to them, semi-labels) into the training batches."""

    def __init__(self, semi: bool) -> None:
        self.semi = semi

    def on_train_start(self, trainer: Any, pl_module: pl.LightningModule) -> None:
        original = trainer.datamodule.on_after_batch_transfer

        def relabelled(batch: Batch, index: int = 0) -> Batch:
            batch = original(batch, index)
            label = torch.randint(0, 2, batch.label.shape, generator=torch.Generator().manual_seed(5))
            batch = batch._replace(label=label)
            return batch._replace(semi_label=label * 2 - 1) if self.semi else batch

        trainer.datamodule.on_after_batch_transfer = relabelled


def check_method(
    make: Method | Callable[[], Method],
    *,
    image_size: int | Sequence[int] = 32,
    batches: int = 12,
    resume: bool = True,
    tolerance: float = 1e-4,
) -> None:
    """Train a method on a few images and hold it to what every command relies on.

    It learns every parameter that asks for a gradient; it sees no label; it gives one finite score a row and, if
    `has_maps`, one finite map at the image's size; a row's score does not depend on the rows beside it; its weights
    alone give the same scores again; a training that is interrupted and resumed ends with the same weights.

    Args:
        make: builds the method, or the method itself, untrained (it is copied).
        image_size: side, or [height, width], of the images it takes.
        batches: training batches; at least one full cycle of its players.
        resume: whether to check the interrupted training, which trains twice more.
        tolerance: largest relative difference between a row's score alone and in a batch.

    Raises:
        AssertionError: a promise is broken; the message says which.
    """
    build = make if not isinstance(make, Method) else partial(copy.deepcopy, make)
    with tempfile.TemporaryDirectory() as place, _quiet_lightning():
        method = _seeded(build)
        assert isinstance(method, Method), f"{type(method).__name__} is no adbench.methods.base.Method"
        data = stripes(method, image_size, place)
        before = {name: p.detach().clone() for name, p in method.named_parameters() if p.requires_grad}
        fit(method, data, batches)
        check_learning(method, before)
        image = images_under_test(data)
        check_scores(method, image, tolerance)
        check_state(method, _seeded(build), image)
        if trains(method):
            check_blindness(build, image_size, place)
            if resume:
                check_resume(method, build, image_size, batches, Path(place))


@contextlib.contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Without what Lightning tells of each of these short trainings."""
    logger = logging.getLogger("pytorch_lightning")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _seeded(build: Callable[[], Method]) -> Method:
    pl.seed_everything(0, workers=True, verbose=False)
    return build()


def check_learning(method: Method, before: dict[str, Tensor]) -> None:
    """Every parameter that required a gradient has changed, or at least had one that is not zero.

    Args:
        method: trained.
        before: its parameters by name, as they were before the training.

    Raises:
        AssertionError: naming those that never learn.
    """
    unchanged = [name for name, value in before.items() if torch.equal(method.get_parameter(name), value)]
    # A step below float32's resolution leaves a weight of 1 as it was; its gradient shows that it is trained.
    unchanged = [n for n in unchanged if (grad := method.get_parameter(n).grad) is None or not grad.any()]
    forgotten = [name for name in unchanged if not name.startswith(tuple(method.gradient_free))]
    assert not forgotten, f"these parameters never learn: {forgotten}; freeze them, or name them in gradient_free"


def check_scores(method: Method, image: Tensor, tolerance: float) -> None:
    """Scores, maps and reconstructions have the promised shapes, types and ranges, row by row.

    Args:
        method: trained, in eval mode.
        image: (N, 3, H, W) in [0, 1].
        tolerance: largest relative difference between a row's score alone and in a batch.

    Raises:
        AssertionError: a promise is broken; the message says which.
    """
    rows = len(image)
    with torch.no_grad():
        scores = method.score(image)
        assert scores.image.shape == (rows,), f"score gives {tuple(scores.image.shape)} for {rows} images"
        assert scores.image.dtype == torch.float32, f"scores are {scores.image.dtype}; float32 is expected"
        assert torch.isfinite(scores.image).all(), "a score is not finite"
        assert (scores.maps is not None) == method.has_maps, "has_maps does not say whether score gives maps"
        if scores.maps is not None:
            wanted = (rows, 1, *image.shape[2:])
            assert scores.maps.shape == wanted, f"maps are {tuple(scores.maps.shape)}, expected {wanted}"
            assert torch.isfinite(scores.maps).all(), "a map has a value that is not finite"
        check_test_scores(method, image, scores)
        alone = torch.cat([method.score(row[None]).image for row in image[:3]])
        torch.testing.assert_close(
            alone, scores.image[:3], rtol=tolerance, atol=1e-6, msg=lambda m: f"a row alone scores differently: {m}"
        )
        reconstruction = method.reconstruct(image)
        if reconstruction is not None:
            assert reconstruction.shape == image.shape, "a reconstruction has another shape than its image"
            assert reconstruction.min() >= 0 and reconstruction.max() <= 1, "a reconstruction leaves [0, 1]"


def check_test_scores(method: Any, image: Tensor, scores: Scores) -> None:
    """What a test asks for is `score`; extras and codes that come with it are those of `extra_scores` and `codes`.

    Args:
        method: trained, in eval mode.
        image: (N, 3, H, W) in [0, 1].
        scores: what `score` gave for it.

    Raises:
        AssertionError: one differs; the message says which.
    """
    tested = method.test_scores(image)
    assert torch.equal(tested.image, scores.image), "test_scores scores otherwise than score"
    if tested.maps is not None:
        assert scores.maps is not None and torch.equal(tested.maps, scores.maps), "test_scores has other maps"
    if tested.extras is not None:
        extras = method.extra_scores(image)
        assert set(tested.extras) == set(extras), "the extras of test_scores have other names than extra_scores"
        for name, extra in tested.extras.items():
            assert torch.equal(extra, extras[name]), f"{name} of test_scores differs from that of extra_scores"
    if tested.codes is not None:
        assert torch.equal(tested.codes, method.codes(image)), "the codes of test_scores differ from those of codes"


def check_state(method: Method, twin: Method, image: Tensor) -> None:
    """The state dict alone carries everything that scores depend on.

    Args:
        method: trained, in eval mode.
        twin: the same method, untrained.
        image: (N, 3, H, W) in [0, 1].

    Raises:
        AssertionError: the twin scores otherwise with the method's state dict.
    """
    twin.load_state_dict({name: value.clone() for name, value in method.state_dict().items()})
    twin.eval()
    with torch.no_grad():
        same = torch.equal(twin.score(image).image, method.score(image).image)
    assert same, "the state dict does not bring the scores back; keep what training computes in buffers"


def check_blindness(build: Callable[[], Method], image_size: int | Sequence[int], place: Path | str) -> None:
    """Random labels in the training batches leave every weight as it was.

    Raises:
        AssertionError: naming the weights that labels reach.
    """
    plain, tampered = (_seeded(build) for _ in range(2))
    data = stripes(plain, image_size, place)
    fit(plain, data, 2)
    relabel = Relabel(semi=plain.supervision == "unsupervised")
    fit(tampered, stripes(tampered, image_size, place), 2, callbacks=[relabel])
    other = tampered.state_dict()
    changed = [name for name, value in plain.state_dict().items() if not torch.equal(value, other[name])]
    assert not changed, f"labels reach these weights: {changed}"


def check_resume(
    whole: Method, build: Callable[[], Method], image_size: int | Sequence[int], batches: int, place: Path
) -> None:
    """A training that stops in the middle and goes on from its checkpoint ends with the same weights, byte for byte.

    Raises:
        AssertionError: naming the weights that differ.
    """
    file, half = place / "half.ckpt", max(1, batches // 2)
    first = _seeded(build)
    stop = SaveEvery(file, half)
    with contextlib.suppress(_Stopped):
        fit(first, stripes(first, image_size, place), batches, callbacks=[_StopAt(stop, half), stop])
    second = _seeded(build)
    fit(second, stripes(second, image_size, place), batches, checkpoint=file)
    found = second.state_dict()
    other = [name for name, value in whole.state_dict().items() if not torch.equal(value, found[name])]
    assert not other, (
        f"resumed training ends with other values of {other}; draw from self.stream, keep state in buffers"
    )


class _Stopped(Exception):
    """The first half of a training is over."""


class _StopAt(pl.Callback):
    """Ends a training once batch k is saved."""

    def __init__(self, saver: Any, k: int) -> None:
        self.saver, self.k = saver, k

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if pl_module.batches_seen == self.k:
            self.saver.on_train_batch_start(trainer, pl_module, batch, batch_idx)
            raise _Stopped
