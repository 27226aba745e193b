"""A trained detector for a user's own images: from a run folder, an exported ONNX graph or released weights."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from matplotlib.colors import Normalize
from PIL import Image
from torch import Tensor

from adbench.data.cache import resized
from adbench.data.folder import users_own
from adbench.data.images import MAX_PIXELS, center_crop, decode, pixels_of
from adbench.data.listing import SUFFIXES, printable
from adbench.data.tables import as_numbers
from adbench.detection.maps import LONGEST_SIDE, thumbnail
from adbench.evaluation.overlay import map_scale, overlay
from adbench.evaluation.thresholds import Threshold, conformal_p_value, held_out_threshold
from adbench.experiment import devices
from adbench.experiment.build import how_far, load_method, restored
from adbench.experiment.folder import RunFolder, held_out_scores
from adbench.experiment.trust import plain_values
from adbench.transforms.image import to_bytes, to_float
from adbench.types import Scores, UserError

BATCH = 32
FALSE_ALARM_RATE = 0.01  # where the run has no threshold of its own
HELD_OUT = "held-out normal training samples"


class Engine(Protocol):
    """Computes the scores of images that it has prepared."""

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 -> a row that `score` takes. May be called in any thread."""
        ...

    def score(self, rows: Sequence[np.ndarray]) -> Scores:
        """Scores of prepared rows: `image` (N,) and `maps` (N, 1, h, w) or None, float32 on the CPU."""
        ...


class Detection(NamedTuple):
    """What a detector says of N images. `image` and `maps` are those of `Scores`."""

    image: Tensor  # (N,) float32 scores, higher = more anomalous, any range
    maps: Tensor | None  # (N, 1, h, w) float32 at the size that the method sees
    anomalous: np.ndarray | None  # (N,) bool, score > threshold; None without held-out scores
    p_value: np.ndarray | None  # (N,) float64 in (0, 1]; None without held-out scores
    threshold: float | None
    paths: list[str]  # of each image, "" for one that is no file


class Detector:
    """Scores images (or rows of features) as the run's own test did.

    Attributes:
        card: what the detector is: method, data, input, metrics, held-out scores, versions. Plain JSON.
        engine: what computes the scores.
        reading: how files are decoded: `bits` and `max_pixels` of `adbench.data.images.decode`, as in the run.

    See `adbench.load`.
    """

    def __init__(self, card: Mapping[str, Any], engine: Engine) -> None:
        self.card, self.engine = dict(card), engine
        self.reading = {
            "bits": int(self.card["input"].get("bits") or 16),
            "max_pixels": int(self.card["input"].get("max_pixels") or MAX_PIXELS),
        }

    def __repr__(self) -> str:
        size = f"{self.card['input']['features']} features" if self.tabular else "x".join(
            map(str, self.card["input"]["size"]))  # fmt: skip
        held_out = self.card["held_out_scores"]
        threshold = "no threshold"
        if held_out:
            rate = max(self.false_alarm_rate, 1 / (len(held_out) + 1))
            value = float(np.quantile(held_out, 1 - self.false_alarm_rate, method="inverted_cdf"))
            threshold = f"threshold {value:.6g} at a false-alarm rate of {rate:.3g}"
        return f"Detector({self.card['method']} on {printable(self.card['data'])}, {size}, {threshold})"

    @property
    def false_alarm_rate(self) -> float:
        """The run's own, in (0, 1): decisions are those of its test unless another rate is asked for."""
        quantile = (self.card.get("threshold") or {}).get("quantile")
        return FALSE_ALARM_RATE if quantile is None else round(1 - float(quantile), 12)

    @property
    def tabular(self) -> bool:
        """Whether it takes rows of features instead of images."""
        return self.card["input"]["kind"] == "tabular"

    def __call__(self, images: Any, false_alarm_rate: float | None = None, batch_size: int = BATCH) -> Detection:
        """Scores, decisions and p-values, as `python -m adbench.predict` writes them.

        Args:
            images: as in `score`.
            false_alarm_rate: share of normal images that may be called anomalous, in (0, 1); None: as in the run.
            batch_size: images that are scored together.

        Raises:
            UserError: as in `score`; the rate lies outside (0, 1).
        """
        rows = images if self.tabular else image_list(images)
        threshold = self.threshold(false_alarm_rate)
        scores = self.score(rows, batch_size)
        value = None if threshold is None else float(threshold["value"])
        return Detection(
            scores.image,
            scores.maps,
            is_anomalous(scores.image.numpy(), value) if value is not None else None,
            self.p_value(scores.image) if value is not None else None,
            value,
            [""] * len(scores.image) if self.tabular else [_file_of(image) for image in rows],
        )

    def score(self, images: Any, batch_size: int = BATCH) -> Scores:
        """Anomaly scores, higher is more anomalous.

        Args:
            images: an image or a list of them, of any size, each a path, a PIL image (turned as its EXIF orientation
                says), an array (H, W) or (H, W, 1, 3 or 4), or a tensor (1 or 3, H, W); or a stack: an array
                (N, H, W, C), a tensor (N, C, H, W). uint8, or float in [0, 1], which is rounded to bytes as files hold
                them. A folder stands for the image files in it and in its subfolders, by name (`image_list` gives
                their order). Of tabular data: (N, D) numbers.
            batch_size: images that are scored together.

        Returns:
            `image` (N,) float32 and `maps` (N, 1, H, W) float32 at the size the method sees, None where it has none.

        Raises:
            UserError: an image cannot be read, or has a shape, a type or values that cannot be an image's; a folder
                holds no image.
        """
        rows = self._features(images) if self.tabular else image_list(images)
        parts: list[Scores] = []
        for first in range(0, len(rows), batch_size):
            chunk = rows[first : first + batch_size]
            parts.append(
                self.engine.score(
                    list(chunk) if self.tabular else [self.engine.prepare(as_bytes(i, **self.reading)) for i in chunk]
                )
            )
        if not parts:
            return Scores(torch.zeros(0), None)
        maps = [part.maps for part in parts if part.maps is not None]
        return Scores(torch.cat([part.image for part in parts]), torch.cat(maps) if maps else None)

    def overlay(self, image: Any, longest: int = LONGEST_SIDE) -> Image.Image:
        """The anomaly map's colours over the grey image; cold pixels leave it visible.

        The colours begin at the median of held-out normal maps, and end at this map's highest values or at those of
        normal maps, whichever is higher: a normal image stays grey.

        Args:
            image: one image, as in `score`.
            longest: pixels of the longer side at most.

        Returns:
            A PIL image (RGB) of the image's own shape.

        Raises:
            UserError: the image cannot be read, or the method has no maps.
        """
        images = [] if self.tabular else image_list(image)
        if len(images) != 1:
            raise UserError(f"overlay takes one image, got {'a table' if self.tabular else len(images)}")
        pixels = as_bytes(images[0], **self.reading)
        scores = self.engine.score([self.engine.prepare(pixels)])
        if scores.maps is None:
            raise UserError(f"{self.card['method']} has no anomaly maps, so there is no overlay")
        return self.overlay_of(pixels, scores.maps[0, 0].numpy(), longest)

    def overlay_of(self, pixels: np.ndarray, values: np.ndarray, longest: int = LONGEST_SIDE) -> Image.Image:
        """The overlay, see `overlay`, of an image (H, W, 3) uint8 whose map (h, w) float32 is known."""
        return Image.fromarray(overlay(thumbnail(pixels, longest), values, self.scale([values])))

    def scale(self, maps: Any) -> Normalize:
        """The colour scale that overlays of maps, (h, w) each, share; see `map_scale`."""
        return map_scale(maps, self.card.get("map_range"))

    def _features(self, rows: Any) -> np.ndarray:
        """(N, D) float64, scaled in float64 as in training."""
        rows = np.asarray(rows.detach().cpu() if isinstance(rows, Tensor) else rows)
        width = self.card["input"]["features"]
        rows = rows[None] if rows.ndim == 1 else rows
        if rows.ndim != 2 or rows.shape[1] != width:
            raise UserError(f"this detector takes rows of {width} numbers, got {rows.dtype} of shape {rows.shape}")
        return as_numbers(rows, "the table")

    def threshold(self, false_alarm_rate: float | None = None) -> Threshold | None:
        """The threshold for a false-alarm rate in (0, 1), with its origin; None, with a warning, without held-out rows.

        Without a rate it is the run's own. A rate that the held-out rows are too few for gets a warning and
        `false_alarm_rate` says which can be had.

        Raises:
            UserError: the rate lies outside (0, 1).
        """
        false_alarm_rate = self.false_alarm_rate if false_alarm_rate is None else false_alarm_rate
        if not 0 < false_alarm_rate < 1:
            raise UserError(f"the false-alarm rate must lie in (0, 1), got {false_alarm_rate}; take 0.01 for instance")
        held_out = str(self.card.get("held_out_origin", HELD_OUT)).removesuffix(", calibration.csv")
        origin = f"{held_out} of {self.card['data']}, {self.card['method']}, seed {self.card['seed']}"
        return held_out_threshold(self.card["held_out_scores"], 1 - false_alarm_rate, origin, "--false-alarm-rate")

    def p_value(self, score: Any) -> np.ndarray:
        """(N,) scores -> (N,) p-values in (0, 1]: for a normal image P(p <= a) <= a.

        Without held-out scores it is 1 everywhere, which says nothing.
        """
        return conformal_p_value(np.asarray(score, dtype=float), np.asarray(self.card["held_out_scores"], dtype=float))


def is_anomalous(score: Any, threshold: float) -> np.ndarray:
    """(N,) scores -> (N,) bool: those above the threshold. A score that is no number is an alarm too."""
    return ~(np.asarray(score, dtype=float) <= threshold)


# -- images of all kinds ----------------------------------------------------------------------------------------------


def image_list(images: Any) -> list[Any]:
    """One image after another; a folder gives its image files and those of its subfolders, by name.

    Args:
        images: as in `Detector.score`.

    Raises:
        UserError: these are no images, or a folder holds none.
    """
    if isinstance(images, str | Path | Image.Image):
        images = [images]
    elif isinstance(images, np.ndarray | Tensor):
        images = list(images) if images.ndim == 4 else [images]
    elif not isinstance(images, Iterable):
        raise UserError(
            f"expected images (paths, folders, PIL images, arrays, tensors, or a list of these), got "
            f"{type(images).__name__}"
        )
    single: list[Any] = []
    for image in images:
        folder = Path(image).expanduser() if isinstance(image, str | Path) else None
        if folder is None or not folder.is_dir():
            single.append(image)
        elif files := users_own(folder):
            single += files
        else:
            raise UserError(f"there is no image in the folder {folder}: no file with {', '.join(SUFFIXES)}")
    return single


def _file_of(image: Any) -> str:
    """The path of an image that is a file, else nothing."""
    return str(image) if isinstance(image, str | Path) else str(getattr(image, "filename", "") or "")


def as_bytes(image: Any, bits: int = 16, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """(H, W, 3) uint8 of one image.

    Args:
        image: a path, a PIL image, an array (H, W) or (H, W, 1, 3 or 4), or a tensor (H, W) or (1, 3 or 4, H, W), of
            uint8 or floats in [0, 1].
        bits, max_pixels: see `adbench.data.images.decode`.

    Raises:
        UserError: the file cannot be read, or this is no image; the message says what was expected.
    """
    if isinstance(image, str | Path):
        return decode(image, bits, max_pixels)
    if isinstance(image, Image.Image):
        return pixels_of(image, bits)
    if not isinstance(image, np.ndarray | Tensor):
        raise UserError(f"expected a path, a PIL image, an array or a tensor, got {type(image).__name__}")
    shape = tuple(image.shape)
    if isinstance(image, Tensor):
        values = image.detach().cpu()
        values = (values[None] if values.ndim == 2 else values).movedim(0, -1) if values.ndim in (2, 3) else values
    else:
        values = torch.from_numpy(np.array(image))
        values = values[..., None] if values.ndim == 2 else values
    if values.ndim != 3 or values.shape[-1] not in (1, 3, 4) or 0 in shape:
        order = "(1 or 3, H, W)" if isinstance(image, Tensor) else "(H, W), (H, W, 3) or (H, W, 4)"
        raise UserError(
            f"an image as {type(image).__name__} is {order}, got {shape}; several go into a list or a stack"
        )
    if values.is_floating_point():
        if not bool(((values >= 0) & (values <= 1)).all()):  # also refuses NaN
            raise UserError(
                f"float images lie in [0, 1], got {float(values.min()):.4g}..{float(values.max()):.4g}; divide by the "
                "largest value, or pass uint8"
            )
        values = to_bytes(values.float())
    elif values.dtype != torch.uint8:
        raise UserError(f"images are uint8 or float in [0, 1], got {values.dtype}")
    return values[..., :3].expand(-1, -1, 3).contiguous().numpy()


# -- engines -----------------------------------------------------------------------------------------------------------


class MethodEngine:
    """A method of this package, with the data layer's own decoding and resizing.

    Args:
        method: trained, in eval mode.
        inputs: the card's `input`.
        device: cpu, cuda, ...

    Raises:
        UserError: the device cannot be used.
    """

    def __init__(self, method: Any, inputs: Mapping[str, Any], device: str) -> None:
        self.device = devices.device(device)
        try:
            self.method = method.to(self.device)
        except (RuntimeError, AssertionError) as error:
            raise UserError(f"device {device} cannot be used: {error}") from error
        self.crop = inputs.get("crop")
        self.size: tuple[int, int] = tuple(inputs["size"] or (0, 0))  # (0, 0): features

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 -> (3, h, w) uint8 at the size that the method sees."""
        return resized((center_crop(image, self.crop) if self.crop else image)[None], self.size)[0]

    def score(self, rows: Sequence[np.ndarray]) -> Scores:
        """Scores of (3, h, w) uint8 images or (D,) float64 features, on the CPU."""
        batch = torch.from_numpy(np.stack(rows)).to(self.device)
        with torch.no_grad():
            scores = self.method.score(to_float(batch) if batch.dtype == torch.uint8 else batch)
        return Scores(scores.image.float().cpu(), None if scores.maps is None else scores.maps.float().cpu())


class OnnxEngine:
    """An exported graph, which resizes for itself; images of one size are scored together.

    Args:
        session: an `onnxruntime.InferenceSession`.
    """

    def __init__(self, session: Any) -> None:
        self.session = session
        entry = session.get_inputs()[0]
        self.name = entry.name
        self.type = {"tensor(float)": np.float32, "tensor(double)": np.float64}.get(entry.type, np.uint8)
        self.fixed = tuple(entry.shape[2:]) if all(isinstance(n, int) for n in entry.shape[2:]) else None

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 -> (3, H, W) uint8.

        Raises:
            UserError: the graph takes another size.
        """
        if self.fixed and image.shape[:2] != self.fixed:
            raise UserError(
                f"this graph takes images of {self.fixed[0]}x{self.fixed[1]}, got {image.shape[0]}x{image.shape[1]}; "
                "export it without --input-size to take any size"
            )
        return np.ascontiguousarray(image.transpose(2, 0, 1))

    def score(self, rows: Sequence[np.ndarray]) -> Scores:
        """Scores of (3, H, W) uint8 images of any sizes or (D,) float64 features, on the CPU, in their order."""
        places = defaultdict(list)
        for place, row in enumerate(rows):
            places[row.shape].append(place)
        order, image, maps = [], [], []
        for group in places.values():
            outputs = self.session.run(None, {self.name: np.stack([rows[place] for place in group]).astype(self.type)})
            order += group
            image.append(outputs[0])
            maps += outputs[1:2]
        back = np.argsort(order)
        joined = [torch.from_numpy(np.concatenate(part)[back]) if part else None for part in (image, maps)]
        assert joined[0] is not None  # there is a row
        return Scores(joined[0], joined[1])


# -- loading -----------------------------------------------------------------------------------------------------------


def load(path: os.PathLike[str] | str, device: str = "cpu", trust: Iterable[str] = ()) -> Detector:
    """A detector from a run folder, or from a .onnx or .safetensors file that `adbench.export` wrote.

    Args:
        path: of the folder or file.
        device: cpu, cuda, ...
        trust: packages whose classes may be built, beside this one and installed plug-ins.

    Raises:
        UserError: there is none at `path`, it is damaged, or it asks for code that nobody trusts.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise UserError(f"there is no {path}; give the folder of a finished run, or a .onnx or .safetensors file")
    if path.is_file() and path.suffix not in (".onnx", ".safetensors") and path.name != "latest":
        raise UserError(f"{path} is a file; give the folder of a finished run, or a .onnx or .safetensors file")
    if path.suffix == ".onnx":
        return _load_onnx(path, device)
    if path.suffix == ".safetensors":
        card, cfg, state = read_released(path)
        method = restored(cfg, state, card["batches_seen"], path, trust)
        return Detector(card, MethodEngine(method, card["input"], device))
    folder = RunFolder(path)
    method = load_method(folder, trust)
    if not bool(method.calibrated):
        raise UserError(how_far(folder))
    return Detector(card := card_of(folder), MethodEngine(method, card["input"], device))


def card_of(folder: RunFolder) -> dict[str, Any]:
    """What a run is, in plain JSON: enough to use its scores elsewhere."""
    cfg, record = folder.config(), folder.metrics()
    size = cfg.data.image_size
    size = [size, size] if isinstance(size, int) else list(size)
    tabular = cfg.data.kind == "tabular"
    keys = ("method", "data", "protocol", "pretraining", "pretraining_weights", "seed", "config_hash", "status",
            "metrics", "threshold", "map_range", "counts", "budget", "versions", "git")  # fmt: skip
    return {
        **{key: record.get(key) for key in keys},
        "data": cfg.data.id,
        "input": {
            "kind": cfg.data.kind,
            "features": size[0] if tabular else None,
            "size": None if tabular else size,
            "crop": cfg.data.source.get("crop"),
            "bits": cfg.data.get("bits"),
            "max_pixels": cfg.data.get("max_pixels"),
            "range": "float64 features as in the training table" if tabular else "uint8 0..255, RGB; grey is repeated",
        },
        "score": "higher is more anomalous, any range",
        "precision": str(record.get("precision") or cfg.trainer.precision),
        "batches_seen": int(record.get("budget", {}).get("batches") or 0),
        "held_out_scores": held_out_scores(folder),
        "held_out_origin": f"{(record.get('threshold') or {}).get('origin') or HELD_OUT}, calibration.csv",
    }


def read_released(path: Path) -> tuple[dict[str, Any], Any, dict[str, Tensor]]:
    """Card, configuration and weights (by name, in the file's shapes) of a .safetensors file; nothing in it is run.

    Raises:
        UserError: `adbench.export` did not write the file, or it is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            note = json.loads((file.metadata() or {})["adbench"])
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        card, config = note["card"], note["config"]
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path} holds no weights that adbench.export --format safetensors wrote: {error}") from error
    return card, RunFolder.parsed(plain_values(config, path)), state


def _load_onnx(path: Path, device: str) -> Detector:
    try:
        import onnxruntime
    except ImportError:
        raise UserError('a .onnx file needs onnxruntime: pip install "adbench-vision[export]"') from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    wanted = [] if devices.device(device).type == "cpu" else ["CUDAExecutionProvider"]
    if missing := set(wanted) - set(onnxruntime.get_available_providers()):
        raise UserError(f"device {device} cannot be used: this onnxruntime has no {missing.pop()}; take --device cpu")
    providers = [*wanted, "CPUExecutionProvider"]
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        card = json.loads(session.get_modelmeta().custom_metadata_map["adbench"])
    except KeyError:
        raise UserError(f"{path} has no model card inside; take a file that adbench.export wrote") from None
    except Exception as error:  # onnxruntime has its own types for each way to break
        raise UserError(f"{path} cannot be loaded: {error}") from error
    return Detector(card, OnnxEngine(session))
