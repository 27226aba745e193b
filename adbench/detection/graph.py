"""The exported forms of a detector: a graph (ONNX, torch.export) that resizes and scores, or the weights alone."""

from __future__ import annotations

import contextlib
import copy
import json
import keyword
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from adbench.detection.detector import MethodEngine, load
from adbench.detection.maps import refuse_unwritable
from adbench.experiment.folder import RunFolder
from adbench.experiment.identity import safe_id
from adbench.files import whole, write_json
from adbench.transforms.image import resize_by_products, resized_bytes, to_float
from adbench.types import UserError

SUFFIXES = {"onnx": ".onnx", "torch-export": ".pt2", "safetensors": ".safetensors"}
INSTEAD = "--format safetensors writes what adbench.load and predict --model take"
FIXED = re.compile(r"marked \S+\.size\(\)\[(\d)\] as dynamic but your code specialized it to be a constant")
OPSET = 20
TOLERANCE = 1e-4  # largest relative difference between a graph's scores and its method's


def export(
    run: Path | str,
    kind: str = "onnx",
    out: Path | str | None = None,
    input_size: tuple[int, int] | None = None,
    trust: Sequence[str] = (),
) -> tuple[Path, dict[str, Any]]:
    """Write the detector of a finished run, and its card as JSON beside it.

    The graph is compared with the method on random images before anything is written.

    Args:
        run: the folder.
        kind: onnx, torch-export or safetensors.
        out: file to write; `exports/<method>_<data>` in the run folder if None.
        input_size: (height, width) that every image will have; None takes images of any size.
        trust: packages whose classes may be built from the run folder.

    Returns:
        The file's path and the card.

    Raises:
        UserError: the run is not finished; a part of the method cannot be exported (the message names the operation);
            the exported graph gives other scores.
    """
    detector = load(run, trust=trust)
    assert isinstance(detector.engine, MethodEngine)
    folder = RunFolder(run)
    card = detector.card | {"format": kind, "parity": None, "input_size": list(input_size) if input_size else None}
    name = "_".join(safe_id(card[part]).replace("/", "-") for part in ("method", "data"))
    path = _place(out, folder.path / "exports" / f"{name}{SUFFIXES[kind]}", SUFFIXES[kind])
    refuse_unwritable(path.parent, "--out")
    if kind == "safetensors":
        save_weights(detector.engine.method, card, folder, path)
    else:
        card["parity"] = save_graph(detector.engine.method, card, kind, path, input_size)
    write_json(path.with_suffix(".json"), card)
    return path, card


def _place(out: Path | str | None, usual: Path, suffix: str) -> Path:
    """Where to write: into a folder under the usual name; a name of another suffix could not be loaded.

    Raises:
        UserError: it has another suffix.
    """
    if out is None:
        return usual
    path = Path(out).expanduser()
    if path.is_dir() or str(out).endswith("/"):
        return path / usual.name
    if path.suffix != suffix:
        raise UserError(f"--out {out}: a file of this format ends in {suffix}; type --out {path.with_suffix(suffix)}")
    return path


def save_weights(method: Any, card: dict[str, Any], folder: RunFolder, path: Path) -> None:
    """Write weights, card and configuration as one .safetensors file."""
    config = folder.values()
    note = {"card": card, "config": {key: config[key] for key in ("method", "seed")}}
    state = {name: value.detach().clone().contiguous() for name, value in method.state_dict().items()}
    with whole(path) as temporary:
        save_file(state, temporary, {"adbench": json.dumps(note)})


class Graph(torch.nn.Module):
    """Preprocessing and scoring as one module.

    Args:
        method: in eval mode.
        inputs: the card's `input`: the `size` that the method sees (None: rows of features) and the central `crop`.
    """

    def __init__(self, method: Any, inputs: dict[str, Any]) -> None:
        super().__init__()
        self.method, self.size, self.crop = method, inputs["size"], inputs.get("crop")

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """uint8 images (N, 3, H, W) or float64 rows (N, D) -> score (N,), and map (N, 1, h, w) if there are maps."""
        if self.size is not None:
            image = to_float(resized_bytes(image, tuple(self.size), partial(resize_by_products, crop=self.crop)))
        scores = self.method.score(image)
        return (scores.image,) if scores.maps is None else (scores.image, scores.maps)


def save_graph(
    method: Any, card: dict[str, Any], kind: str, path: Path, input_size: tuple[int, int] | None = None
) -> float:
    """Write the graph of a method, if its scores are the method's.

    Args:
        method: trained, in eval mode.
        card: of the detector; it goes into the file.
        kind: onnx or torch-export.
        path: of the file.
        input_size: see `export`.

    Returns:
        The largest difference between the two, relative to the largest score.

    Raises:
        UserError: the method cannot be exported, or the difference is `TOLERANCE` or more.
    """
    if method.no_graph is not None:
        raise UserError(f"{card['method']} {method.no_graph}, so there is no graph of it to export; {INSTEAD}")
    inputs = card["input"]
    module = Graph(_with_safe_names(method), inputs).eval()
    image = _example(inputs, input_size, 1)
    with _quiet(), torch.no_grad():
        program = _trace(module, card, input_size)
        reference = module(image)
        with whole(path) as temporary:
            if kind == "torch-export":
                torch.export.save(program, temporary, extra_files={"adbench.json": json.dumps(card)})
                outputs = [part.numpy() for part in program.module()(image)]
            else:
                content = _onnx(program, card)
                temporary.write_bytes(content)
                outputs = _run_onnx(content, image.numpy())
            difference = max(_difference(one, two.numpy()) for one, two in zip(outputs, reference, strict=True))
            if not difference < TOLERANCE:
                raise UserError(
                    f"the exported {card['method']} gives scores that differ by {difference:.2g}: nothing was written"
                )
    return difference


def _trace(module: Graph, card: dict[str, Any], input_size: tuple[int, int] | None) -> Any:
    """The module as a program of torch.export, for any number of rows and, unless a size is given, of any size."""
    inputs = card["input"]
    dim = torch.export.Dim.DYNAMIC
    free = {0: dim} if inputs["size"] is None or input_size else {0: dim, 2: dim, 3: dim}
    try:
        return torch.export.export(module, (_example(inputs, input_size, 0),), dynamic_shapes=({**free},), strict=False)
    except Exception as error:  # the tracer's errors have many types
        raise UserError(f"{card['method']} cannot be exported: {_reason(error)}; {INSTEAD}") from error


def _onnx(program: Any, card: dict[str, Any]) -> bytes:
    """The bytes of the ONNX file, its card among its metadata."""
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError:
        raise UserError('--format onnx needs onnx and onnxscript: pip install "adbench-vision[export]"') from None
    options: dict[str, Any] = {"dynamo": True, "opset_version": OPSET, "verbose": False}
    try:
        try:
            exported = torch.onnx.export(program, optimize=True, **options)
        except torch.onnx.OnnxExporterError:
            raise
        except Exception:  # the optimizer fails on some graphs, which are right as they are
            exported = torch.onnx.export(program, optimize=False, **options)
    except Exception as error:
        raise UserError(f"{card['method']} cannot be exported to ONNX: {_reason(error)}; {INSTEAD}") from error
    assert exported is not None  # an export by way of dynamo gives the program
    model = exported.model_proto
    names = ["score", "map"]
    _rename(model.graph, {**dict(zip((o.name for o in model.graph.output), names, strict=False)),
                          model.graph.input[0].name: "image"})  # fmt: skip
    note = model.metadata_props.add()
    note.key, note.value = "adbench", json.dumps(card | {"parity": None})
    onnx.checker.check_model(model)
    return model.SerializeToString()


def _rename(node_graph: Any, names: dict[str, str]) -> None:
    """Give a graph's inputs and outputs other names."""
    for value in (*node_graph.input, *node_graph.output):
        value.name = names.get(value.name, value.name)
    for node in node_graph.node:
        for side in (node.input, node.output):
            side[:] = [names.get(name, name) for name in side]


def _run_onnx(content: bytes, image: np.ndarray) -> list[Any]:
    try:
        import onnxruntime
    except ImportError:
        raise UserError('checking the graph needs onnxruntime: pip install "adbench-vision[export]"') from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: image})


def _example(inputs: dict[str, Any], input_size: tuple[int, int] | None, number: int) -> torch.Tensor:
    """Random rows: few of one size to trace the graph (number 0), others of another count and size to check it (1)."""
    rows, generator = (2, 5)[number], torch.Generator().manual_seed(number)
    if inputs["size"] is None:
        return torch.randn(rows, inputs["features"], generator=generator, dtype=torch.float64)
    height, width = input_size or [int(side * (1.5, 0.7)[number]) + 3 * k for k, side in enumerate(inputs["size"])]
    coarse = torch.rand(rows, 3, 8, 8, generator=generator)  # smooth, as photographs are; and some noise
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return (smooth * 235 + 20 * torch.rand(rows, 3, height, width, generator=generator)).to(torch.uint8)


def _difference(output: np.ndarray, reference: np.ndarray) -> float:
    return float(np.abs(output - reference).max() / max(np.abs(reference).max(), 1e-30))


def _reason(error: BaseException) -> str:
    """The first cause in a chain of errors, which names the operation that is in the way."""
    deepest: BaseException = error
    while deepest.__cause__ is not None:
        deepest = deepest.__cause__
    if fixed := FIXED.search(str(deepest)):
        return f"its code takes the {'number' if fixed[1] == '0' else 'size'} of the images for a constant"
    lines = [line.strip() for line in str(deepest).splitlines() if line.strip()]
    return f"{type(deepest).__name__}: {' '.join(lines)[:400] or 'no reason given'}"


class _SafeNames(torch.nn.ModuleDict):
    """A dictionary of modules whose keys have an underscore at the end in the graph."""

    def __getitem__(self, key: str) -> torch.nn.Module:
        return super().__getitem__(f"{key}_")


def _with_safe_names(method: Any) -> Any:
    """The method without Python's keywords as keys of its dictionaries of modules: a traced graph cannot hold these."""
    unsafe = [(name, child) for name, child in method.named_children()
              if isinstance(child, torch.nn.ModuleDict) and any(map(keyword.iskeyword, child))]  # fmt: skip
    if unsafe:
        method = copy.copy(method)
        method._modules = dict(method._modules)
        for name, child in unsafe:
            method._modules[name] = _SafeNames({f"{key}_": value for key, value in child.items()})
    return method


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporters' own progress and warnings are no news to the user."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(None):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
