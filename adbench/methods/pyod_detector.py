"""Every detector of PyOD as a method: on tables, on pixels, or on the pooled features of an ImageNet backbone.

PyOD's detectors are Python objects, which a checkpoint must not hold. A checkpoint holds the training rows instead, and
who loads it fits again: on one thread of the CPU the same rows and the same seed give the same detector.

Source: Zhao et al. 2019, "PyOD: A Python Toolbox for Scalable Outlier Detection".
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import inspect
import io
import logging
import math
import re
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from adbench.errors import did_you_mean, first_line
from adbench.methods.base import sides
from adbench.methods.shallow import Shallow
from adbench.networks.backbone import Backbone
from adbench.networks.encoder import PretrainableEncoder
from adbench.networks.mlp import FeatureScaling
from adbench.streams import derived_seed, seeded_globals
from adbench.types import Batch, Scores, UserError

log = logging.getLogger("adbench")

EXTRA = 'pip install "adbench-vision[pyod]"'
SMALLEST = 64  # pixels of a side below which the last map of a backbone says nothing

#: "apart": a row's score is the same whatever is scored with it. "together": rows that are scored in one call change
#: each other's scores. "company": as together, and the training rows take no part unless they are scored along.
Rows = Literal["apart", "together", "company"]


class Known(NamedTuple):
    """What is known of a detector; a test of each measures it."""

    module: str  # of pyod.models
    rows: Rows = "apart"
    labels: bool = False  # learns from known anomalies
    needs: str | None = None  # a package beside PyOD
    alone: bool = True  # what `alone=None` means
    most: tuple[int, str] | None = None  # all triples of these are looked at: with more it would take hours
    caveat: str | None = None  # what its scores suffer from


SWAPPED = "PyOD 3.6.7 hands the labels to its loss as scores and the scores as labels"
DETECTORS = {
    "ABOD": Known("abod"),
    "AE1SVM": Known("ae1svm"),
    "ALAD": Known("alad"),
    "AnoGAN": Known("anogan"),
    "AutoEncoder": Known("auto_encoder"),
    "CBLOF": Known("cblof"),
    "CD": Known("cd", "company"),
    "COF": Known("cof", "company", alone=False),
    "COPOD": Known("copod", "together"),
    "DeepSVDD": Known("deep_svdd"),
    "DevNet": Known("devnet", labels=True, caveat=SWAPPED),
    "DIF": Known("dif", "company", alone=False),
    "ECOD": Known("ecod", "together"),
    "FeatureBagging": Known("feature_bagging"),
    "GMM": Known("gmm"),
    "HBOS": Known("hbos"),
    "HDBSCAN": Known("hdbscan"),
    "IForest": Known("iforest"),
    "INNE": Known("inne"),
    "KDE": Known("kde"),
    "KNN": Known("knn"),
    "KPCA": Known("kpca"),
    "LMDD": Known("lmdd", "company", alone=False),
    "LOCI": Known("loci", "company", alone=False, most=(1000, "training rows")),
    "LODA": Known("loda"),
    "LOF": Known("lof"),
    "LSCP": Known("lscp"),
    "LUNAR": Known("lunar"),
    "MAD": Known("mad"),
    "MCD": Known("mcd"),
    "MO_GAAL": Known("mo_gaal"),
    "OCSVM": Known("ocsvm"),
    "PCA": Known("pca"),
    "QMCD": Known("qmcd"),
    "RGraph": Known("rgraph", "together", alone=False),
    "ROD": Known("rod", "company", alone=False, most=(100, "columns")),
    "Sampling": Known("sampling"),
    "SO_GAAL": Known("so_gaal"),
    "SOD": Known("sod", "company", alone=False),
    "SOS": Known("sos", "company", alone=False),
    "SUOD": Known("suod", "together", needs="suod", alone=False),
    "VAE": Known("vae", "together"),
    "XGBOD": Known("xgbod", labels=True, needs="xgboost"),
}


class PyOD(Shallow):
    """Score = the decision function of a PyOD detector that was fitted on the training rows.

    Args:
        kind: see `Shallow`.
        image_size: side, or [height, width], of the images, or the number of features.
        scaling: of tabular data, see `FeatureScaling`.
        encoder: of images: null takes pixels, the name of a timm model its pooled features.
        detector: a class of `pyod.models`, e.g. ECOD.
        options: arguments of its constructor. The seed is the run's unless they say otherwise. A mapping with the key
            `detector` stands for a detector with the other keys as its arguments.
        alone: score each row by itself where a detector ranks the rows of a call among each other; with false the
            method is transductive. null takes what `DETECTORS` says.

    Raises:
        UserError: there is no such detector, option or package; the detector refuses an option.
    """

    fitted = ("rows", "known")
    no_graph = "computes its scores outside torch"

    def __init__(
        self,
        kind: str = "object",
        image_size: int | Sequence[int] = 32,
        scaling: str = "min_max",
        encoder: str | None = None,
        detector: str | None = None,
        options: Mapping[str, Any] | None = None,
        alone: bool | None = None,
    ) -> None:
        if encoder is not None and kind == "tabular":
            raise UserError(f"method.encoder={encoder} takes images; tables need method.encoder=null")
        super().__init__(kind, cast(int, image_size), scaling, None)
        self.detector, self.traits = known(detector)
        self._maker = _class(self.detector, self.traits)
        self._options = dict(options or {})
        self._refuse_options()
        self.alone = self.traits.alone if alone is None else alone
        self.transductive = self.traits.rows != "apart" and not self.alone
        self.needs_known_anomalies = self.traits.labels
        self.supervision = "semi" if self.traits.labels else "unsupervised"
        self.backbone = None if encoder is None else _backbone(encoder, image_size)
        self._detector: Any = None

    @property
    def display_name(self) -> str:
        return f"PyOD's {self.detector}"

    def check_inputs(self) -> None:
        if self.traits.caveat is not None:
            log.warning("warning: %s says little: %s", self.display_name, self.traits.caveat)

    # -- pretraining ---------------------------------------------------------------------------------------------

    def encoders(self) -> dict[str, PretrainableEncoder]:
        """The backbone, for pretraining; nothing where pixels or features are used."""
        return {} if self.backbone is None else {"encoder": self.backbone.encoder()}

    def on_pretrained(self) -> None:
        """Freeze the backbone again."""
        if self.backbone is not None:
            self.backbone.requires_grad_(False).eval()

    def _features(self, image: Tensor) -> Tensor:
        """What the detector sees: (B, E) float32."""
        return self.encoder(self.input(image)) if self.backbone is None else self.backbone.pooled(image)

    # -- fitting -------------------------------------------------------------------------------------------------

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Keep the training rows, and which of them are known as anomalous; fit the detector."""
        batches = list(batches)
        if isinstance(self.input, FeatureScaling):
            self.input.fit([batch.image for batch in batches])
        self.rows = torch.cat([self._features(batch.image) for batch in batches])
        self.known = torch.cat([batch.semi_label == -1 for batch in batches])
        self._detector = None
        self._refuse_hours(*self.rows.shape)
        self._of_these_rows()

    def _of_these_rows(self) -> Any:
        """The detector fitted on the training rows: one that this process has fitted before, or a new one."""
        if self._detector is None:
            rows, anomalous = _numbers(self.rows), self.known.cpu().numpy().astype(int)
            key = _digest(self.detector, sorted(self._options.items()), self.seed, rows, anomalous)
            if key not in _LATEST:
                _LATEST[key] = self._fit(rows, anomalous)
                if len(_LATEST) > KEPT:
                    _LATEST.popitem(last=False)
            self._detector = _LATEST[key]
        return self._detector

    def _refuse_hours(self, count: int, columns: int) -> None:
        """Refuse rows for which a detector that looks at all triples would not come to an end."""
        most, of = self.traits.most or (math.inf, "")
        there = columns if of == "columns" else count
        if there > most:
            raise UserError(
                f"{self.display_name} looks at all triples of {of}: with more than {most:,} each batch takes hours, "
                f"and there are {there:,}; choose another method.detector"
            )

    def _fit(self, rows: np.ndarray, anomalous: np.ndarray) -> Any:
        """A new detector, fitted to (n, E) rows of which (n,) are known as anomalous.

        Raises:
            UserError: it refuses these rows.
        """
        try:
            with _one_thread(), _repeatable(self.seed, "fit"):
                found = self._made(rows.shape[1])
                found.fit(rows, anomalous) if self.traits.labels else found.fit(rows)
        except (OSError, MemoryError):  # which pass by themselves: the same command goes on
            raise
        except Exception as error:  # of many types, from many libraries
            raise UserError(
                f"PyOD's {self.detector} cannot be fitted to {rows.shape[0]} training rows of {rows.shape[1]} numbers: "
                f"{first_line(error)}"
            ) from error
        for part in vars(found).values():
            if isinstance(part, nn.Module):
                part.eval()  # ALAD would score with dropout
        return found

    def _made(self, columns: int) -> Any:
        """A new detector for rows of so many numbers, not fitted. It computes on the CPU, wherever there is a GPU."""
        parameters = inspect.signature(self._maker.__init__).parameters
        seed = derived_seed(self.seed, "pyod") % 2**31
        ours = {"random_state": seed, "random_seed": seed, "device": "cpu", "n_features": columns, "verbose": 0}
        given = {name: _nested(value) for name, value in self._options.items()}
        found = self._maker(**{name: value for name, value in ours.items() if name in parameters} | given)
        for name, part in list(vars(found).items()):
            if isinstance(part, torch.device):
                setattr(found, name, torch.device("cpu"))
            elif isinstance(part, nn.Module):
                part.cpu()
        return found

    def _refuse_options(self) -> None:
        parameters = inspect.signature(self._maker.__init__).parameters
        names = sorted(set(parameters) - {"self"})
        any_name = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        for name in self._options:
            if name not in names and not any_name:
                raise UserError(
                    f"method.options.{name}: PyOD's {self.detector} has no such option; it has {', '.join(names)}. "
                    f"method=pyod/{self.detector.lower()} brings them all"
                )
        try:
            self._made(columns=1)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"method.options of PyOD's {self.detector}: {first_line(error)}") from error

    # -- scoring -------------------------------------------------------------------------------------------------

    def score(self, image: Tensor) -> Scores:
        """See `Method.score`.

        Raises:
            UserError: the detector fails on a row, or gives it a score that is no finite number.
        """
        rows, detector = _numbers(self._features(image)), self._of_these_rows()
        try:
            with _one_thread():
                scores = torch.from_numpy(self._scores(detector, rows)).float()
        except (OSError, MemoryError):
            raise
        except Exception as error:
            raise UserError(f"PyOD's {self.detector} cannot score {len(rows)} rows: {first_line(error)}") from error
        lost = int((~torch.isfinite(scores)).sum())
        if lost:
            raise UserError(
                f"PyOD's {self.detector} gives {lost} of {len(rows)} rows a score that is no finite number; choose "
                "another method.detector, or other method.options"
            )
        return Scores(scores.to(image.device), None)

    def _scores(self, detector: Any, rows: np.ndarray) -> np.ndarray:
        """(B, E) -> (B,) float64."""
        if self.traits.rows == "apart":
            size = getattr(detector, "batch_size", None)
            last = isinstance(size, int) and len(rows) % size == 1  # a network's loader drops the axis of a single row
            return self._call(detector, np.concatenate([rows, rows[-1:]]) if last else rows)[: len(rows)]
        beside = _numbers(self.rows) if self.traits.rows == "company" else rows[:0]
        calls = [row[None] for row in rows] if self.alone else [rows]
        scores = [self._call(detector, np.concatenate([beside, part]))[len(beside) :] for part in calls]
        return np.concatenate(scores)

    def _call(self, detector: Any, rows: np.ndarray) -> np.ndarray:
        with _repeatable(self.seed, "score"), _generators_unchanged(detector):
            return np.asarray(detector.decision_function(rows), dtype=np.float64).reshape(len(rows))


# -- detectors --------------------------------------------------------------------------------------------------------


def known(detector: str | None) -> tuple[str, Known]:
    """A detector's name and what is known of it. Of one that a newer PyOD has, nothing: its rows are scored alone.

    Raises:
        UserError: there is none of this name; the message lists them.
    """
    names = ", ".join(DETECTORS)
    if detector is None:
        raise UserError(f"method=pyod needs a detector, method.detector=NAME; there are {names}")
    found = DETECTORS.get(detector) or _newer(detector)
    if found is None:
        hint = did_you_mean(detector, DETECTORS)
        raise UserError(f"method.detector={detector} is not in PyOD; {hint}There are {names}")
    return detector, found


def _newer(detector: str) -> Known | None:
    """A detector that the installed PyOD has beyond `DETECTORS`, found without importing any."""
    spec = importlib.util.find_spec("pyod")
    for place in (spec.submodule_search_locations or []) if spec is not None else []:
        for file in sorted(Path(place, "models").glob("*.py")):
            tables = not file.name.startswith(("_", "base", "ts_", "pyg_", "audio", "embedding"))
            if tables and re.search(rf"^class {re.escape(detector)}\(Base\w*Detector", file.read_text("utf-8"), re.M):
                return Known(file.stem, "together")
    return None


def _class(detector: str, traits: Known) -> Any:
    """The class of a detector.

    Raises:
        UserError: PyOD, or what else the detector needs, is not installed.
    """
    if importlib.util.find_spec("pyod") is None:
        raise UserError(f"method=pyod needs PyOD: {EXTRA}")
    if traits.needs is not None and importlib.util.find_spec(traits.needs) is None:
        raise UserError(f"PyOD's {detector} needs {traits.needs}: pip install {traits.needs}")
    try:
        return getattr(importlib.import_module(f"pyod.models.{traits.module}"), detector)
    except Exception as error:  # a package that is missing, or that does not fit
        raise UserError(f"PyOD's {detector} cannot be imported: {first_line(error)}") from error


def _nested(value: Any) -> Any:
    """An option's value; a mapping with a detector's name becomes that detector."""
    if isinstance(value, Mapping) and "detector" in value:
        options = {name: _nested(one) for name, one in value.items() if name != "detector"}
        return _class(*known(value["detector"]))(**options)
    return [_nested(one) for one in value] if isinstance(value, list) else value


def _backbone(encoder: str, image_size: int | Sequence[int]) -> Backbone:
    backbone = Backbone(encoder, (0,), image_size, option="method.encoder")
    if min(sides(image_size)) < SMALLEST:
        raise UserError(
            f"method.encoder={encoder} would see images of {image_size} pixels; say data.image_size=224, or choose "
            "method=pyod/ecod_features and its detector with method.detector=NAME"
        )
    return backbone


# -- the same numbers everywhere --------------------------------------------------------------------------------------

KEPT = 2  # fitted detectors that a process remembers: whoever loads a run twice fits once
_LATEST: OrderedDict[str, Any] = OrderedDict()


def _numbers(rows: Tensor) -> np.ndarray:
    return rows.detach().double().cpu().numpy()


def _digest(*parts: Any) -> str:
    name = hashlib.blake2b(digest_size=16)
    for part in parts:
        name.update(np.ascontiguousarray(part).tobytes() if isinstance(part, np.ndarray) else repr(part).encode())
    return name.hexdigest()


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """PyOD computes on one thread, so that sums are added in the same order whatever the machine's cores."""
    from threadpoolctl import threadpool_limits

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def _repeatable(seed: int, purpose: str) -> Iterator[None]:
    """Everything random is a function of seed and purpose; gradients are there, for detectors that learn or query by
    them; what PyOD and its libraries print is no news to the user."""
    with (
        seeded_globals(seed, "pyod", purpose), torch.inference_mode(False), torch.enable_grad(),
        contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings(),
    ):  # fmt: skip
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _generators_unchanged(detector: Any) -> Iterator[None]:
    """A detector that draws while it scores, from a generator of its own, draws the same in each call."""
    own = [part for part in vars(detector).values() if isinstance(part, np.random.RandomState)]
    states = [generator.get_state() for generator in own]
    try:
        yield
    finally:
        for generator, state in zip(own, states, strict=True):
            generator.set_state(state)
