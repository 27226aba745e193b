"""A detector's scores of files: what `python -m adbench.predict` computes and writes."""

from __future__ import annotations

import csv
import os
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.colors import Normalize
from tqdm import tqdm

from adbench import __version__
from adbench.data.folder import users_own
from adbench.data.images import decode
from adbench.data.listing import SUFFIXES, below
from adbench.data.tables import as_numbers, read_arrays, read_csv
from adbench.detection.detector import Detector, is_anomalous, load
from adbench.detection.maps import draw, places_of, refuse_unwritable, thumbnail
from adbench.files import shortened, whole, write_json
from adbench.types import UserError

COLUMNS = ("path", "score", "threshold", "decision", "p_value")
TABLES = (".csv", ".npy", ".npz", ".mat")
LONGEST_NAME = 150  # bytes of a map's file name without its suffix


@dataclass(frozen=True)
class Options:
    """How files are scored and what is written.

    Attributes:
        out: folder to write.
        false_alarm_rate: share of normal images that may be called anomalous, in (0, 1); None: as in the run.
        maps: png, npy, or none for neither maps nor overlays.
        batch_size: images scored together.
        max_pixels: larger images are refused; None takes the run's limit.
    """

    out: Path
    false_alarm_rate: float | None = None
    maps: str = "png"
    batch_size: int = 32
    max_pixels: int | None = None


class Row(NamedTuple):
    """A line of scores.csv."""

    path: str
    score: float


@dataclass
class Results:
    """The scores so far, the files that have none or lack their map, each with the reason, and the names of maps."""

    rows: list[Row] = field(default_factory=list)
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    unwritten: list[tuple[str, str]] = field(default_factory=list)
    drawn: set[str] = field(default_factory=set)


def predict(
    model: Path, inputs: Sequence[Path], options: Options, device: str = "cpu", trust: Sequence[str] = ()
) -> int:
    """Score files and write scores.csv, maps, overlays and predict.json.

    Args:
        model: a run folder, or a .onnx or .safetensors file.
        inputs: files, and folders that are searched with their subfolders.
        options: how they are scored and what is written.
        device: cpu, cuda, ...
        trust: packages whose classes may be built from the run folder.

    Returns:
        The exit code: 0, or 2 if some files could not be read or some maps not written.

    Raises:
        UserError: nothing could be scored, and why.
    """
    if options.batch_size < 1:
        raise UserError(f"--batch-size must be at least 1, got {options.batch_size}")
    detector = load(model, device, trust)
    paths = files_of(inputs, TABLES if detector.tabular else SUFFIXES)
    threshold = detector.threshold(options.false_alarm_rate)
    refuse_unwritable(options.out, "--out")
    results = Results()
    try:
        (score_tables if detector.tabular else score_images)(detector, paths, options, results)
    except BaseException:
        if results.rows:
            partial = options.out / "scores.partial.csv"
            _write_scores(partial, detector, results.rows, threshold)
            print(f"stopped: the {len(results.rows)} scores so far are in {partial}", file=sys.stderr)
        raise
    earlier = _earlier(options.out)
    _write(model, detector, results, threshold, options)
    mine = {place for name in results.drawn for place in places_of(options.out, name, options.maps)}
    _remove([*(earlier - mine), options.out / "scores.partial.csv"])  # the tables say nothing of them any more
    if not results.rows:
        reasons = options.out / "unreadable.csv"
        raise UserError(f"none of the {len(results.unreadable)} files could be read; {reasons} says why")
    return 2 if results.unreadable or results.unwritten else 0


def files_of(inputs: Sequence[Path], suffixes: tuple[str, ...] = SUFFIXES) -> list[Path]:
    """Files as they are given, and all image files below folders, by name.

    What is hidden there is left out, and so are the pictures that runs and predictions have drawn in folders of theirs.

    Raises:
        UserError: something does not exist, or there is no image at all.
    """
    files: dict[Path, None] = {}
    for entry in inputs:
        if entry.is_dir():
            files |= dict.fromkeys(users_own(entry) if suffixes == SUFFIXES else below(entry, suffixes))
        elif entry.exists():
            files[entry] = None
        else:
            raise UserError(f"there is no {entry}; give images or folders of them")
    if not files:
        raise UserError(f"no file with {', '.join(suffixes)} in {', '.join(map(str, inputs))}")
    return list(files)


# -- tables ------------------------------------------------------------------------------------------------------------


def score_tables(detector: Detector, paths: Sequence[Path], options: Options, results: Results) -> None:
    """Score every row of every table.

    Raises:
        UserError: a table is wrong; nothing has been scored then.
    """
    tables = [(path, _table(detector, path)) for path in paths]
    for path, values in tables:
        scores = detector.score(values, options.batch_size).image.tolist()
        results.rows.extend(Row(f"{path}/{i}", score) for i, score in enumerate(scores))


def _table(detector: Detector, path: Path) -> np.ndarray:
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


# -- images ------------------------------------------------------------------------------------------------------------


def score_images(detector: Detector, paths: Sequence[Path], options: Options, results: Results) -> None:
    """Decode in threads, score in batches, write maps in threads; memory holds a few batches, however many files."""
    reading = detector.reading | ({"max_pixels": options.max_pixels} if options.max_pixels else {})
    maps_asked = options.maps != "none"

    def read(path: Path) -> tuple[Any, Any]:
        image = decode(path, **reading)
        return detector.engine.prepare(image), (thumbnail(image) if maps_asked else None)

    threads = torch.get_num_threads()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    pool = ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,))
    writer = _MapWriter(pool, detector, paths, options, results)
    chunks = [paths[first : first + options.batch_size] for first in range(0, len(paths), options.batch_size)]
    try:
        with tqdm(total=len(paths), desc="Scoring", unit="image", delay=2, disable=None) as bar:
            for chunk, futures in _ahead(pool, read, chunks):
                ready = _readable(chunk, futures, results)
                if ready:
                    scores = detector.engine.score([prepared for _, prepared, _ in ready])
                    values = scores.image.tolist()
                    results.rows.extend(Row(str(path), value) for (path, *_), value in zip(ready, values, strict=True))
                    if maps_asked and scores.maps is not None:
                        writer.start([(path, image) for path, _, image in ready], scores.maps[:, 0].numpy())
                bar.update(len(chunk))
            writer.wait()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(threads)


class _MapWriter:
    """Writes a batch's maps and overlays in threads while the next batch is scored.

    All overlays of a call share one colour scale, that of the first batch's maps.
    """

    def __init__(
        self, pool: ThreadPoolExecutor, detector: Detector, paths: Sequence[Path], options: Options, results: Results
    ) -> None:
        self.pool, self.detector, self.options, self.results = pool, detector, options, results
        self.names = unique_names(paths)
        self.scale: Normalize | None = None
        self.waiting: list[tuple[Path, Future[None]]] = []

    def start(self, images: Sequence[tuple[Path, np.ndarray]], maps: np.ndarray) -> None:
        self.scale = self.scale or self.detector.scale(maps)
        self.wait()
        self.waiting = [
            (path, self.pool.submit(draw, self.options.out, self.names[path], values, image, self.options.maps,
                                    self.scale))
            for (path, image), values in zip(images, maps, strict=True)
        ]  # fmt: skip

    def wait(self) -> None:
        """Until the last batch's maps are there; one that cannot be written costs no score."""
        for path, future in self.waiting:
            try:
                future.result()
                self.results.drawn.add(self.names[path])
            except (OSError, ValueError) as error:  # a full disk
                self.results.unwritten.append((str(path), getattr(error, "strerror", None) or str(error)))
        self.waiting = []


def _readable(chunk: Sequence[Path], futures: Sequence[Any], results: Results) -> list[tuple[Path, Any, Any]]:
    """Path, prepared image and image for an overlay of each file that could be read; the others are noted."""
    ready = []
    for path, future in zip(chunk, futures, strict=True):
        try:
            ready.append((path, *future.result()))
        except UserError as error:
            results.unreadable.append((str(path), str(error)))
    return ready


def _ahead(pool: Any, read: Any, chunks: list[Sequence[Path]]) -> Iterator[tuple[Sequence[Path], list[Any]]]:
    """Each chunk with its futures, the next one already being read."""
    waiting: list[Any] = []
    for number, chunk in enumerate(chunks):
        futures = waiting if number else [pool.submit(read, path) for path in chunk]
        waiting = [pool.submit(read, path) for path in chunks[number + 1]] if number + 1 < len(chunks) else []
        yield chunk, futures


def unique_names(paths: Sequence[Path]) -> dict[Path, str]:
    """A file name for each path's map: the part below the folder they share, its separators kept as underscores.

    A long name is cut, and names that differ in case alone get a number: every file system takes them.
    """
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


# -- files of a call ---------------------------------------------------------------------------------------------------


def _write(model: Path, detector: Detector, results: Results, threshold: Any, options: Options) -> None:
    anomalous = _write_scores(options.out / "scores.csv", detector, results.rows, threshold)
    rate = detector.false_alarm_rate if options.false_alarm_rate is None else options.false_alarm_rate
    card = {key: detector.card.get(key) for key in ("method", "data", "protocol", "pretraining", "seed", "config_hash")}
    try:
        _write_lines(options.out / "unreadable.csv", [("path", "error"), *results.unreadable])
        write_json(options.out / "predict.json", {
            "model": str(model), **card, "threshold": threshold, "asked_false_alarm_rate": rate,
            "scored": len(results.rows), "anomalous": anomalous, "unreadable": len(results.unreadable),
            "maps": options.maps, "maps_not_written": len(results.unwritten), "adbench": __version__,
        })  # fmt: skip
    except OSError as error:
        raise UserError(
            f"scores.csv is whole, and the files beside it in {options.out} cannot be written: "
            f"{error.strerror or error}"
        ) from error
    for path, reason in results.unreadable:
        print(f"not scored: {path}: {reason}", file=sys.stderr)
    for path, reason in results.unwritten:
        print(f"scored, but its map could not be written: {path}: {reason}", file=sys.stderr)
    above = "no threshold" if threshold is None else f"{anomalous} above the threshold {threshold['value']:.6g}"
    lost = f", {len(results.unwritten)} maps not written" if results.unwritten else ""
    print(
        f"{len(results.rows)} scored, {above}, {len(results.unreadable)} unreadable{lost} "
        f"-> {options.out / 'scores.csv'}"
    )


def _earlier(out: Path) -> set[Path]:
    """The maps and overlays of an earlier call's table in the same folder; files of anybody else are not among them."""
    paths = []
    for table in (out / "scores.csv", out / "unreadable.csv"):
        if table.is_file():
            with suppress(OSError, csv.Error, KeyError), table.open(newline="", errors="surrogateescape") as file:
                paths += [Path(row["path"]) for row in csv.DictReader(file)]
    names = unique_names(paths).values() if paths else ()
    places = [place for name in names for place in places_of(out, name)]
    return {place for place in places if place.is_file()}


def _remove(files: Iterable[Path]) -> None:
    for file in files:
        with suppress(OSError):  # the scores are there
            file.unlink()


def _write_scores(path: Path, detector: Detector, rows: Sequence[Row], threshold: Any) -> int | None:
    """Write the table of scores; returns how many are above the threshold. What cannot be written is printed."""
    value = None if threshold is None else threshold["value"]
    p_values = detector.p_value([row.score for row in rows]) if value is not None else [None] * len(rows)
    lines: list[Sequence[str]] = [COLUMNS]
    anomalous = 0
    for row, p in zip(rows, p_values, strict=True):
        line = [row.path, f"{row.score:.9g}", "", "", ""]
        if value is not None:
            alarm = bool(is_anomalous(row.score, value))
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
    with (
        whole(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        csv.writer(file, lineterminator="\n").writerows(lines)
