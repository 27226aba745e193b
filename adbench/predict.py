"""`python -m adbench.predict`: score a user's own images with a finished run or an exported graph."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:  # imported where they are used: --help answers at once
    import numpy as np

    from adbench.detection.detector import Detector

OVERLAY = 1024  # longest side of an overlay, in pixels
HEAT = 0.75  # how far the colour of the hottest pixels covers the image
COLUMNS = ("path", "score", "threshold", "decision", "p_value")
TABLES = (".csv", ".npy", ".npz", ".mat")
LONGEST_NAME = 150  # bytes of a map's file name without its suffix


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 1 for a mistake, 2 if some files could not be read."""
    parser = argparse.ArgumentParser(
        prog="python -m adbench.predict",
        description="Score images with a trained detector: scores.csv, anomaly maps and overlays.",
        epilog="Exit code: 0; 1 a mistake, the message says which; 2 some files could not be read (listed at the end "
        "and in unreadable.csv) or some maps not written (listed at the end), all else is done. With --model FILE "
        "the first argument is an image already.",
    )
    parser.add_argument("inputs", nargs="+", metavar="RUN|IMAGE|FOLDER",
                        help="a run folder, then images or folders (searched with their subfolders); for a run on "
                             "tables .csv or .npy files of feature rows, or X of .npz and .mat files")  # fmt: skip
    parser.add_argument("--model", type=Path, help="a .onnx or .safetensors file instead of a run folder")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--false-alarm-rate", type=float, default=0.01, metavar="RATE",
                        help="share of normal images that may be called anomalous (0.01)")  # fmt: skip
    parser.add_argument("--maps", choices=("png", "npy", "none"), default="png",
                        help="anomaly maps as 16-bit PNG with their scale inside (png), as float32 .npy, or neither "
                             "maps nor overlays")  # fmt: skip
    parser.add_argument("--max-pixels", type=int, metavar="N",
                        help="refuse larger images (as in the run: 200 million)")  # fmt: skip
    parser.add_argument("--batch-size", type=int, default=32, help="images scored together (32)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ... (cpu)")
    parser.add_argument("--trust", action="append", default=[], metavar="NAME",
                        help="a package whose classes may be built from the run folder")  # fmt: skip
    options = parser.parse_intermixed_args(arguments)

    import warnings

    from adbench.types import UserError

    with contextlib.suppress(AttributeError):  # a name that the terminal cannot show must not cost a score
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    try:
        return _predict(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _predict(options: argparse.Namespace) -> int:
    from adbench.detection.detector import load
    from adbench.types import UserError

    model, inputs = (options.model, options.inputs) if options.model else (options.inputs[0], options.inputs[1:])
    if not inputs:
        raise UserError("give the images after the run folder: python -m adbench.predict RUN IMAGE_OR_FOLDER --out DIR")
    if options.batch_size < 1:
        raise UserError(f"--batch-size must be at least 1, got {options.batch_size}")
    detector = load(model, options.device, options.trust)
    threshold = detector.threshold(options.false_alarm_rate)
    paths = listed([Path(entry).expanduser() for entry in inputs], TABLES if detector.tabular else None)
    _check_writable(options.out)
    found = Found([], [], [])
    try:
        (_tables if detector.tabular else _images)(detector, paths, options, found)
    except BaseException:
        if found.rows:
            partial = options.out / "scores.partial.csv"
            _write_scores(partial, detector, found.rows, threshold)
            print(f"stopped: the {len(found.rows)} scores so far are in {partial}", file=sys.stderr)
        raise
    _write(detector, found, threshold, options)
    if not found.rows:
        reasons = options.out / "unreadable.csv"
        raise UserError(f"none of the {len(found.unreadable)} files could be read; {reasons} says why")
    return 2 if found.unreadable or found.unwritten else 0


def _check_writable(out: Path) -> None:
    """Make the folder and write a file in it, before anything is scored."""
    import tempfile

    from adbench.types import UserError

    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=out, prefix=".scores-") as file:
            file.write(b"scores")
    except OSError as error:
        raise UserError(f"cannot write to --out {out}: {error.strerror or error}; choose another folder") from error


def listed(inputs: Sequence[Path], suffixes: tuple[str, ...] | None = None) -> list[Path]:
    """Files as they are given, and all image files below folders, by name, without what is hidden there.

    Raises:
        UserError: something does not exist, or there is no image at all.
    """
    from adbench.data.listing import SUFFIXES, below
    from adbench.types import UserError

    suffixes = suffixes or SUFFIXES
    found: dict[Path, None] = {}
    for entry in inputs:
        if entry.is_dir():
            found |= dict.fromkeys(below(entry, suffixes))
        elif entry.exists():
            found[entry] = None
        else:
            raise UserError(f"there is no {entry}; give images or folders of them")
    if not found:
        raise UserError(f"no file with {', '.join(suffixes)} in {', '.join(map(str, inputs))}")
    return list(found)


class Row(NamedTuple):
    """A line of scores.csv."""

    path: str
    score: float


class Found(NamedTuple):
    """What became of the files so far."""

    rows: list[Row]
    unreadable: list[tuple[str, str]]  # path and reason
    unwritten: list[tuple[str, str]]  # files whose map or overlay could not be written, and the reason


def _tables(detector: Detector, paths: list[Path], options: argparse.Namespace, found: Found) -> None:
    """Every row of every table; one that is wrong stops the call before anything is scored."""
    tables = [(path, _table(detector, path)) for path in paths]
    for path, values in tables:
        scores = detector.score(values, options.batch_size).image.tolist()
        found.rows.extend(Row(f"{path}/{i}", score) for i, score in enumerate(scores))


def _table(detector: Detector, path: Path) -> np.ndarray:
    import numpy as np

    from adbench.data.tables import as_numbers, read_arrays, read_csv
    from adbench.types import UserError

    suffix = path.suffix.lower()
    if suffix == ".npy":
        try:
            values = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"cannot read {path} as an array of numbers: {error}") from error
        values = as_numbers(values[None] if values.ndim == 1 else values, str(path))
    elif suffix in (".npz", ".mat"):
        values = as_numbers(read_arrays(path, ("X",))[0], f"{path}: X")
    else:
        values = read_csv(path).values
    width = detector.card["input"]["features"]
    if values.shape[1] != width:
        raise UserError(
            f"{path}: this detector takes rows of {width} numbers, and these have {values.shape[1]}; the columns are "
            "those of the training table, in its order, without the labels"
        )
    return values


def _images(detector: Detector, paths: list[Path], options: argparse.Namespace, found: Found) -> None:
    """Decode in threads, score in batches, write maps in threads; memory holds a few batches, however many files."""
    import os
    from concurrent.futures import Future, ThreadPoolExecutor

    import torch
    from tqdm import tqdm

    from adbench.data.images import decode
    from adbench.types import UserError

    size = options.batch_size
    reading = detector.reading | ({"max_pixels": options.max_pixels} if options.max_pixels else {})
    drawn = options.maps != "none"
    names = _unique(paths)

    def read(path: Path) -> tuple[Any, Any]:
        image = decode(path, **reading)
        return detector.engine.prepare(image), (_shrunk(image) if drawn else None)

    colours: Colours | None = None
    threads = torch.get_num_threads()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    pool = ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,))
    writing: list[tuple[Path, Future[None]]] = []
    try:
        with tqdm(total=len(paths), desc="Scoring", unit="image", delay=2) as bar:
            chunks = [paths[first : first + size] for first in range(0, len(paths), size)]
            for chunk, futures in _ahead(pool, read, chunks):
                ready = []
                for path, future in zip(chunk, futures, strict=True):
                    try:
                        ready.append((path, *future.result()))
                    except UserError as error:
                        found.unreadable.append((str(path), str(error)))
                if ready:
                    scores = detector.engine.score([prepared for _, prepared, _ in ready])
                    found.rows.extend(Row(str(p), s) for (p, *_), s in zip(ready, scores.image.tolist(), strict=True))
                    if drawn and scores.maps is not None:
                        maps = scores.maps[:, 0].numpy()
                        colours = colours or Colours.of(maps)
                        _note_unwritten(writing, found)  # of the batch before
                        writing = [
                            (path, pool.submit(_draw, options.out, names[path], one, image, options.maps, colours))
                            for (path, _, image), one in zip(ready, maps, strict=True)
                        ]
                bar.update(len(chunk))
            _note_unwritten(writing, found)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(threads)


def _note_unwritten(writing: list[tuple[Path, Any]], found: Found) -> None:
    """Wait for the maps of a batch; one that cannot be written costs no score."""
    for path, done in writing:
        try:
            done.result()
        except (OSError, ValueError) as error:  # a full disk; a map that is not finite
            found.unwritten.append((str(path), getattr(error, "strerror", None) or str(error)))


def _ahead(pool: Any, read: Any, chunks: list[list[Path]]) -> Iterator[tuple[list[Path], list[Any]]]:
    """Each chunk with its futures, the next one already being read."""
    waiting: list[Any] = []
    for number, chunk in enumerate(chunks):
        futures = waiting if number else [pool.submit(read, path) for path in chunk]
        waiting = [pool.submit(read, path) for path in chunks[number + 1]] if number + 1 < len(chunks) else []
        yield chunk, futures


def _unique(paths: list[Path]) -> dict[Path, str]:
    """A file name for each path's map: the part below the folder they share, its separators kept as underscores.

    A long name is cut, and names that differ in case alone are told apart: every file system takes them.
    """
    import os.path
    import unicodedata

    from adbench.files import shortened

    parents = [str(path.parent) for path in paths]
    shared = Path(os.path.commonpath(parents)) if len({Path(p).is_absolute() for p in parents}) == 1 else None
    taken: set[str] = set()
    names = {}
    for path in paths:
        inside = path.relative_to(shared) if shared is not None else Path(path.name)
        base = shortened("_".join(inside.parts).replace(".", "_") or "image", LONGEST_NAME)
        name, number = base, 1
        while (key := unicodedata.normalize("NFC", name).casefold()) in taken:
            number += 1
            name = f"{base}_{number}"
        taken.add(key)
        names[path] = name
    return names


# -- maps and overlays -------------------------------------------------------------------------------------------------


class Colours(NamedTuple):
    """The scale that all overlays of a call share: the range of the first batch's maps, but for their extremes."""

    low: float
    high: float

    @classmethod
    def of(cls, maps: np.ndarray) -> Colours:
        import numpy as np

        values = maps[np.isfinite(maps)]
        low, high = np.quantile(values, [0.01, 0.998]) if len(values) else (0.0, 1.0)
        return cls(float(low), float(high if high > low else low + 1))


def _shrunk(image: np.ndarray) -> np.ndarray:
    """An image for an overlay, at most OVERLAY pixels long."""
    import numpy as np
    from PIL import Image

    scale = OVERLAY / max(image.shape[:2])
    if scale >= 1:
        return image
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def _draw(out: Path, name: str, values: np.ndarray, image: np.ndarray, kind: str, colours: Colours) -> None:
    import numpy as np

    from adbench.files import whole

    with whole(out / "maps" / f"{name}.{kind}") as path:
        if kind == "npy":
            np.save(path, values)
        else:
            write_map(path, values)
    with whole(out / "overlays" / f"{name}.jpg") as path:
        overlay(image, values, colours).save(path, quality=90)


def write_map(path: Path, values: np.ndarray) -> None:
    """(H, W) as a 16-bit PNG; the scores of its 0 and 65535 stand in its text chunks `low` and `high`."""
    import numpy as np
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    low, high = float(values.min()), float(values.max())
    span = high - low or 1.0
    note = PngInfo()
    note.add_text("low", repr(low))
    note.add_text("high", repr(low + span))
    steps = np.rint((values.astype(np.float64) - low) / span * 65535).astype(np.uint16)
    Image.fromarray(steps).save(path, format="PNG", pnginfo=note, compress_level=3)


def read_map(path: Path | str) -> np.ndarray:
    """(H, W) float32 of a map that `write_map` wrote, exact to 1 / 131070 of its range."""
    import numpy as np
    from PIL import Image

    with Image.open(path) as file:
        low, high = float(file.info["low"]), float(file.info["high"])
        return (low + np.asarray(file).astype(np.float64) / 65535 * (high - low)).astype(np.float32)


def overlay(image: np.ndarray, values: np.ndarray, colours: Colours) -> Any:
    """The map's colours over the grey image; where the map is cold the image shows."""
    import numpy as np
    from matplotlib import colormaps
    from PIL import Image

    height, width = image.shape[:2]
    share = ((values - colours.low) / (colours.high - colours.low)).clip(0, 1).astype(np.float32)
    share = np.asarray(Image.fromarray(share).resize((width, height), Image.Resampling.BILINEAR))
    table = (colormaps["inferno"](np.arange(256))[:, :3] * 255).astype(np.float32)
    grey = np.repeat(image.mean(axis=-1, keepdims=True, dtype=np.float32), 3, axis=-1)
    strength = HEAT * share[..., None]
    mixed = (1 - strength) * grey + strength * table[(share * 255).astype(np.uint8)]
    return Image.fromarray(mixed.clip(0, 255).astype(np.uint8))


# -- what is written ---------------------------------------------------------------------------------------------------


def _write(detector: Detector, found: Found, threshold: Any, options: argparse.Namespace) -> None:
    from adbench import __version__
    from adbench.files import write_json
    from adbench.types import UserError

    anomalous = _write_scores(options.out / "scores.csv", detector, found.rows, threshold)
    model = options.model or options.inputs[0]
    card = {key: detector.card.get(key) for key in ("method", "data", "protocol", "pretraining", "seed", "config_hash")}
    try:
        _write_lines(options.out / "unreadable.csv", [("path", "error"), *found.unreadable])
        write_json(options.out / "predict.json", {
            "model": str(model), **card, "threshold": threshold, "asked_false_alarm_rate": options.false_alarm_rate,
            "scored": len(found.rows), "anomalous": anomalous, "unreadable": len(found.unreadable),
            "maps": options.maps, "maps_not_written": len(found.unwritten), "adbench": __version__,
        })  # fmt: skip
    except OSError as error:
        raise UserError(
            f"scores.csv is whole, and the files beside it in {options.out} cannot be written: "
            f"{error.strerror or error}"
        ) from error
    for path, reason in found.unreadable:
        print(f"not scored: {path}: {reason}", file=sys.stderr)
    for path, reason in found.unwritten:
        print(f"scored, but its map could not be written: {path}: {reason}", file=sys.stderr)
    above = "no threshold" if threshold is None else f"{anomalous} above the threshold {threshold['value']:.6g}"
    lost = f", {len(found.unwritten)} maps not written" if found.unwritten else ""
    print(
        f"{len(found.rows)} scored, {above}, {len(found.unreadable)} unreadable{lost} -> {options.out / 'scores.csv'}"
    )


def _write_scores(path: Path, detector: Detector, rows: list[Row], threshold: Any) -> int | None:
    """Write the table of scores; returns how many are above the threshold. What cannot be written is printed."""
    import csv

    from adbench.types import UserError

    value = None if threshold is None else threshold["value"]
    chance = detector.p_value([row.score for row in rows]) if value is not None else [None] * len(rows)
    lines: list[Sequence[str]] = [COLUMNS]
    anomalous = 0
    for row, p in zip(rows, chance, strict=True):
        line = [row.path, f"{row.score:.9g}", "", "", ""]
        if value is not None:
            alarm = not row.score <= value  # a score that is no number is an alarm too
            anomalous += alarm
            line[2:] = [f"{value:.9g}", "anomalous" if alarm else "normal", f"{p:.6g}"]
        lines.append(line)
    try:
        _write_lines(path, lines)
    except OSError as error:
        csv.writer(sys.stdout, lineterminator="\n").writerows(lines)
        raise UserError(f"cannot write {path}: {error.strerror or error}; the scores were printed instead") from error
    return anomalous if value is not None else None


def _write_lines(path: Path, lines: Sequence[Sequence[str]]) -> None:
    """A CSV file, whole; a path in it that is no text keeps its bytes."""
    import csv

    from adbench.files import whole

    with (
        whole(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        csv.writer(file, lineterminator="\n").writerows(lines)


if __name__ == "__main__":
    sys.exit(main())
