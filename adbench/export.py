"""`python -m adbench.export`: a trained detector as one file, for machines without the run folder or this package."""

from __future__ import annotations

import argparse
import contextlib
import json
import keyword
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # imported where they are used: --help answers at once
    import torch

FORMATS = {"onnx": ".onnx", "torch-export": ".pt2", "safetensors": ".safetensors"}
OPSET = 20


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m adbench.export",
        description="Write a trained detector as one file, with its model card (JSON) inside and beside it.",
        epilog="onnx and torch-export hold resizing and scoring in one graph: uint8 images (N, 3, H, W) of any size "
        "and count in, score (N,) and map (N, 1, h, w) out. safetensors holds the weights and the configuration, to be "
        "released for adbench itself (adbench.load, predict --model).",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a finished run's folder")
    parser.add_argument("--format", choices=tuple(FORMATS), default="onnx", help="(onnx)")
    parser.add_argument("--out", type=Path, help="file to write (RUN/exports/<method>_<data>.<suffix>)")
    parser.add_argument("--input-size", metavar="HxW",
                        help="fix the size of the images, e.g. 900x900, for runtimes that need it")  # fmt: skip
    parser.add_argument("--trust", action="append", default=[], metavar="NAME",
                        help="a package whose classes may be built from the run folder")  # fmt: skip
    options = parser.parse_args(arguments)

    from adbench.types import UserError

    try:
        path, card = export(options.run, options.format, options.out, _size(options.input_size), options.trust)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    difference = card["parity"]
    said = "" if difference is None else f", scores equal the method's to {difference:.1g} relative"
    print(f"{card['method']} of {card['data']}, {path.stat().st_size / 2**20:.1f} MiB{said} -> {path}")
    return 0


def _size(text: str | None) -> tuple[int, int] | None:
    from adbench.types import UserError

    if text is None:
        return None
    sides = text.lower().split("x")
    if len(sides) != 2 or not all(side.isdigit() and int(side) > 0 for side in sides):
        raise UserError(f"--input-size is HxW, e.g. 900x900, got {text}")
    return int(sides[0]), int(sides[1])


def export(
    run: Path | str,
    kind: str = "onnx",
    out: Path | str | None = None,
    input_size: tuple[int, int] | None = None,
    trust: Sequence[str] = (),
) -> tuple[Path, dict[str, Any]]:
    """Write the detector of a finished run and its card; returns the file's path and the card.

    The graph is compared with the method on random images before anything is written.

    Raises:
        UserError: the run is not finished; a part of the method cannot be exported (the message names the operation);
            the exported graph gives other scores.
    """
    from adbench.detection.detector import MethodEngine, load
    from adbench.experiment.folder import RunFolder
    from adbench.experiment.identity import safe_id
    from adbench.files import write_json

    detector = load(run, trust=trust)
    assert isinstance(detector.engine, MethodEngine)
    folder = RunFolder(run)
    card = detector.card | {"format": kind, "parity": None, "input_size": list(input_size) if input_size else None}
    name = "_".join(safe_id(card[part]).replace("/", "-") for part in ("method", "data"))
    path = Path(out) if out else folder.path / "exports" / f"{name}{FORMATS[kind]}"
    if kind == "safetensors":
        _save_weights(detector.engine.method, card, folder, path)
    else:
        card["parity"] = save_graph(detector.engine.method, card, kind, path, input_size)
    write_json(path.with_suffix(".json"), card)
    return path, card


def _save_weights(method: Any, card: dict[str, Any], folder: Any, path: Path) -> None:
    from safetensors.torch import save_file

    from adbench.files import whole

    config = folder.values()
    note = {"card": card, "config": {key: config[key] for key in ("method", "seed")}}
    state = {name: value.detach().clone().contiguous() for name, value in method.state_dict().items()}
    with whole(path) as temporary:
        save_file(state, temporary, {"adbench": json.dumps(note)})


# -- graphs ------------------------------------------------------------------------------------------------------------


def graph(method: Any, inputs: dict[str, Any]) -> torch.nn.Module:
    """Preprocessing and scoring as one module: uint8 images (N, 3, H, W) or float64 rows (N, D) -> score (N,), map."""
    import torch

    from adbench.transforms.image import resize_by_products, resized_bytes, to_float

    size, crop = inputs["size"], inputs.get("crop")

    class Graph(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.method = method

        def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
            if size is not None:
                image = to_float(resized_bytes(image, tuple(size), partial(resize_by_products, crop=crop)))
            scores = self.method.score(image)
            return (scores.image,) if scores.maps is None else (scores.image, scores.maps)

    return Graph().eval()


def save_graph(
    method: Any, card: dict[str, Any], kind: str, path: Path, input_size: tuple[int, int] | None = None
) -> float:
    """Write the graph of a method; returns the largest difference between its scores and the method's, relative."""
    import torch

    from adbench.files import whole
    from adbench.types import UserError

    inputs = card["input"]
    examples = [_example(inputs, input_size, number) for number in (0, 1)]
    module = graph(_with_safe_names(method), inputs)
    dim = torch.export.Dim.DYNAMIC
    free = {0: dim} if inputs["size"] is None or input_size else {0: dim, 2: dim, 3: dim}
    with _quiet(), torch.no_grad():
        try:
            program = torch.export.export(module, (examples[0],), dynamic_shapes=({**free},), strict=False)
        except Exception as error:  # whatever it is that the tracer met
            raise UserError(f"{card['method']} cannot be exported: {_why(error)}") from error
        wanted = module(examples[1])
        if kind == "torch-export":
            with whole(path) as temporary:
                torch.export.save(program, temporary, extra_files={"adbench.json": json.dumps(card)})
            found = [part.numpy() for part in program.module()(examples[1])]
        else:
            content = _onnx(program, card)
            found = _run_onnx(content, examples[1].numpy())
            with whole(path) as temporary:
                temporary.write_bytes(content)
    difference = max(_difference(one, two.numpy()) for one, two in zip(found, wanted, strict=True))
    if not difference < 1e-4:
        path.unlink(missing_ok=True)
        raise UserError(
            f"the exported {card['method']} gives scores that differ by {difference:.2g}: nothing was written"
        )
    return difference


def _onnx(program: Any, card: dict[str, Any]) -> bytes:
    """The bytes of the ONNX file, its card among its metadata."""
    import torch

    from adbench.types import UserError

    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError:
        raise UserError('--format onnx needs onnx and onnxscript: pip install "adbench-vision[export]"') from None
    options: dict[str, Any] = {"dynamo": True, "opset_version": OPSET, "verbose": False}
    try:
        try:
            found = torch.onnx.export(program, optimize=True, **options)
        except torch.onnx.OnnxExporterError:
            raise
        except Exception:  # the optimizer fails on some graphs, which are right as they are
            found = torch.onnx.export(program, optimize=False, **options)
    except Exception as error:
        raise UserError(f"{card['method']} cannot be exported to ONNX: {_why(error)}") from error
    model = found.model_proto
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


def _run_onnx(content: bytes, image: Any) -> list[Any]:
    from adbench.types import UserError

    try:
        import onnxruntime
    except ImportError:
        raise UserError('checking the graph needs onnxruntime: pip install "adbench-vision[export]"') from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: image})


def _example(inputs: dict[str, Any], input_size: tuple[int, int] | None, number: int) -> torch.Tensor:
    """Random rows: few of one size to trace the graph, others of another number and size to check it."""
    import torch

    rows, generator = (2, 5)[number], torch.Generator().manual_seed(number)
    if inputs["size"] is None:
        return torch.randn(rows, inputs["features"], generator=generator, dtype=torch.float64)
    height, width = input_size or [int(side * (1.5, 0.7)[number]) + 3 * k for k, side in enumerate(inputs["size"])]
    coarse = torch.rand(rows, 3, 8, 8, generator=generator)  # smooth, as photographs are; and some noise
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return (smooth * 235 + 20 * torch.rand(rows, 3, height, width, generator=generator)).to(torch.uint8)


def _difference(found: Any, wanted: Any) -> float:
    import numpy as np

    return float(np.abs(found - wanted).max() / max(np.abs(wanted).max(), 1e-30))


def _why(error: BaseException) -> str:
    """The operation that is in the way, from however long a chain of errors."""
    deepest: BaseException = error
    while deepest.__cause__ is not None:
        deepest = deepest.__cause__
    lines = [line.strip() for line in str(deepest).splitlines() if line.strip()]
    return f"{type(deepest).__name__}: {' '.join(lines)[:400] or 'no reason given'}"


def _with_safe_names(method: Any) -> Any:
    """The method, its dictionaries of modules without Python's keywords as names, which a traced graph cannot hold."""
    import copy

    import torch

    class Named(torch.nn.ModuleDict):
        def __getitem__(self, key: str) -> torch.nn.Module:
            return super().__getitem__(f"{key}_")

    found = [(name, child) for name, child in method.named_children()
             if isinstance(child, torch.nn.ModuleDict) and any(map(keyword.iskeyword, child))]  # fmt: skip
    if found:
        method = copy.copy(method)
        method._modules = dict(method._modules)
        for name, child in found:
            method._modules[name] = Named({f"{key}_": value for key, value in child.items()})
    return method


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Exporters talk of their own affairs."""
    import logging
    import warnings

    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(None):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


if __name__ == "__main__":
    sys.exit(main())
