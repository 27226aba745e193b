"""One way to test a trained method: every run ends with it, and `evaluate` does it again. It takes plain values."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from adbench.evaluation.observers import Observer
    from adbench.evaluation.thresholds import Decisions, Threshold
    from adbench.types import Batch

Row = tuple[int, str, int, str, float]  # index, path, label, defect, score: a line of scores.csv

PIXELS = 61  # every so many-th pixel of a map is sampled: a prime, so that it is not one column of the image


class Folder(Protocol):
    """Where the results go. On another rank than 0 its methods write nothing."""

    path: Path

    def write_scores(self, name: str, rows: Iterable[Row]) -> None:
        """Write the table of scores under a file name."""

    def write_curves(self, curves: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
        """Write `curves.json`: level ("pixel") -> name of a column -> its values."""


@dataclass(frozen=True)
class Pictures:
    """How many pictures a test leaves: the keys of `evaluation` in the configuration that are about pictures.

    Args:
        panels_anomalous, panels_normal: images drawn at most, of anomalous ones the worst misses first.
        codes: images whose codes are drawn, for methods that have codes; 0 draws none.
        gallery: images for each role in the gallery; 0 writes none.
    """

    panels_anomalous: int = 48
    panels_normal: int = 4
    codes: int = 150
    gallery: int = 3

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Pictures:
        """From a mapping that may hold other options too; what is missing keeps its default."""
        return cls(**{str(key): options[key] for key in options if key in cls.__dataclass_fields__})


class HeldOut(NamedTuple):
    """Scores of the held-out normal rows."""

    rows: NDArray[np.int64]  # (n,) of the record table
    score: NDArray[np.float32]  # (n,)
    pixels: NDArray[np.float32]  # a sample of their maps; empty without maps

    @property
    def offset(self) -> float:
        """What maps are shifted by before their pixels are counted in bins, see `metrics.histogram_offset`."""
        from adbench.evaluation.metrics import histogram_offset

        return histogram_offset(self.pixels) if len(self.pixels) else 0.0


class Measurement(NamedTuple):
    """What a test has measured."""

    metrics: dict[str, float | None]  # name -> fraction in 0..1; None where undefined
    per_defect: dict[str, float]  # defect kind -> image AUROC against all normal rows
    interval: tuple[float, float] | None  # 95 % bootstrap interval of the image AUROC
    seconds: float  # of the test, pictures included
    decisions: Decisions | None = None  # see `Evaluator.decisions`


def score_held_out(method: Any, batches: Iterable[Batch]) -> HeldOut:
    """Score the held-out normal rows.

    Args:
        method: trained, calibrated, on its device.
        batches: of the held-out rows, on the same device.
    """
    import torch

    index, score, pixels = [], [], []
    with torch.no_grad():
        for batch in batches:
            scores = method.score(batch.image)
            index.append(batch.index.cpu())
            score.append(scores.image.float().cpu())
            if scores.maps is not None:
                pixels.append(scores.maps.float().flatten()[::PIXELS].cpu())
    nothing = torch.empty(0)
    rows = torch.cat(index).numpy() if index else np.empty(0, dtype=np.int64)
    return HeldOut(rows, torch.cat([*score, nothing]).numpy(), torch.cat([*pixels, nothing]).numpy())


def cross_validated(method: Any, datamodule: Any, device: Any) -> HeldOut | None:
    """Held-out scores by K-fold cross-validation: each fold's normal rows, scored by a copy that was fitted on the rows
    of the others; None where the data module asks for none.

    Args:
        method: one that fits in one pass; it stays as it is.
        datamodule: see its `folds`.
        device: where to fit.
    """
    import copy

    import torch

    folds, label = datamodule.folds, datamodule.records.label
    parts = []
    for fold in folds:
        with torch.no_grad():
            refit = copy.deepcopy(method).to(device).eval()
            refit.prepare(datamodule.rows_batches(np.setdiff1d(datamodule.split.train, fold), device))
        parts.append(score_held_out(refit, datamodule.rows_batches(fold[label[fold] == 0], device)))
    if not parts:
        return None
    rows, score, pixels = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(rows)
    return HeldOut(rows[order], score[order], pixels)


def without_test(folder: Folder, held_out: HeldOut, threshold: Threshold | None) -> Measurement:
    """What a run without test rows has: the picture of its held-out scores, and metrics that nothing defines.

    Args:
        folder: where `scores.csv`, empty, and `figures/scores.png` go.
        held_out: scores of normal rows that were not trained on.
        threshold: drawn into the picture.
    """
    from adbench.evaluation.metrics import IMAGE_METRICS
    from adbench.evaluation.panels import draw_histogram, save

    folder.write_scores("scores.csv", [])
    if len(held_out.score):
        figure = draw_histogram(held_out.score, np.zeros(len(held_out.score)), threshold and threshold["value"])
        figure.axes[0].set_title("scores of normal images that were not trained on", loc="left", fontsize=10)
        (folder.path / "figures").mkdir(exist_ok=True)
        save(figure, folder.path / "figures" / "scores.png")
    return Measurement(dict.fromkeys(IMAGE_METRICS), {}, None, 0.0)


def test(
    method: Any,
    datamodule: Any,
    folder: Folder,
    pictures: Pictures,
    *,
    threshold: Threshold | None,
    offset: float,
    trainer_with: Callable[[list[Observer]], Any],
) -> Measurement:
    """Score the test rows and measure the scores; leaves `scores.csv`, `curves.json` and `figures/` in the folder.

    Args:
        method: trained and calibrated.
        datamodule: set up; its test rows are scored.
        folder: where the results go.
        pictures: how many of them.
        threshold: behind `image_balanced_accuracy` and in the pictures.
        offset: of maps, see `HeldOut.offset`.
        trainer_with: makes the Lightning trainer that tests, with these callbacks among its own.
    """
    from adbench.evaluation.codes import CodePanels
    from adbench.evaluation.evaluator import Evaluator
    from adbench.evaluation.extra_scores import ExtraScores
    from adbench.evaluation.gallery import Gallery
    from adbench.evaluation.observers import Subject
    from adbench.evaluation.panels import Panels

    started, figures, subject = time.perf_counter(), folder.path / "figures", Subject.of(datamodule)
    evaluator, extra = Evaluator(subject, threshold, offset), ExtraScores(subject)
    observers: list[Observer] = [
        evaluator,
        Panels(figures, evaluator, anomalous=pictures.panels_anomalous, normals=pictures.panels_normal),
        Gallery(figures, evaluator, number=pictures.gallery),
        CodePanels(figures, subject, pictures.codes),
        extra,
    ]
    trainer_with(observers).test(method, datamodule=datamodule, verbose=False)
    seconds = time.perf_counter() - started
    if curves := evaluator.curves():
        folder.write_curves({"pixel": curves})
    table = evaluator.table()
    folder.write_scores("scores.csv", named_rows(datamodule.records, table["index"], table["score"]))
    return Measurement(
        evaluator.results() | extra.results(), evaluator.per_defect(), evaluator.interval(), round(seconds, 2),
        evaluator.decisions(),
    )  # fmt: skip


def named_rows(records: Any, index: NDArray[np.int64], score: NDArray[np.float32]) -> Iterator[Row]:
    """Lines of scores.csv.

    Args:
        records: the data set's record table.
        index: (n,) rows of it.
        score: (n,) their scores.
    """
    for i, s in zip(index.tolist(), score.tolist(), strict=True):
        yield i, str(records.path[i]), int(records.label[i]), str(records.defect[i]), s
