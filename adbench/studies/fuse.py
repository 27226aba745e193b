"""`python -m adbench.fuse`: the scores of IGD's two scales, trained apart, added. Source: Chen et al. 2022, Eq. 13."""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from adbench.errors import command

SAME = ("method", "data", "protocol", "seed", "data_fingerprint")


class Row(NamedTuple):
    """One line of scores.csv or calibration.csv."""

    row: int
    path: str
    label: int
    defect: str
    score: float


@command
def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m adbench.fuse",
        description="Add the scores of two finished IGD runs on the same test rows, one of whole images "
        "(method.scales=[global]) and one of patches (method.scales=[local]): s = s_G + s_L. Writes a folder that the "
        "report reads, with metrics.json and scores.csv. Anomaly maps are not kept by runs, so pixel metrics are not "
        "in it.",
        epilog="Example: python -m adbench.fuse RUN_GLOBAL RUN_LOCAL",
    )
    parser.add_argument("run_global", type=Path, metavar="RUN_GLOBAL", help="the folder of the run of whole images")
    parser.add_argument("run_local", type=Path, metavar="RUN_LOCAL", help="the folder of the run of patches")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write; default: beside RUN_GLOBAL")
    options = parser.parse_args(arguments)

    from adbench.errors import UserError
    from adbench.experiment.console import quietly

    try:
        with quietly():
            record, folder = fuse(options.run_global, options.run_local, options.out)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    from adbench.experiment.console import summary

    print(summary(record, folder))
    return 0


def fused(first: Sequence[Row], second: Sequence[Row]) -> list[Row]:
    """The rows of both with their scores added. Source: Eq. 13.

    Raises:
        UserError: they are not the same rows in the same order; names the first that differs.
    """
    from adbench.types import UserError

    if len(first) != len(second):
        raise UserError(
            f"the runs scored {len(first)} and {len(second)} rows; only scores of the same rows can be added"
        )
    for a, b in zip(first, second, strict=True):
        if a[:4] != b[:4]:
            raise UserError(
                f"the runs scored other rows: {a.path} (row {a.row}, {a.defect}) and {b.path} (row {b.row}, "
                f"{b.defect}) are in one place; only scores of the same rows can be added"
            )
    return [a._replace(score=a.score + b.score) for a, b in zip(first, second, strict=True)]


def fuse(run_global: Path | str, run_local: Path | str, out: Path | str | None = None) -> tuple[dict[str, Any], Path]:
    """Fuse two finished runs; returns what metrics.json of the result holds, and its folder.

    Raises:
        UserError: a run is not finished or not of one scale, their data, split or seed differ, or `out` holds something
            else.
    """
    from adbench.experiment.folder import RunFolder
    from adbench.experiment.identity import digest

    folders = {"global": RunFolder(run_global), "local": RunFolder(run_local)}
    records = {scale: _finished(folder, scale) for scale, folder in folders.items()}
    _check_same(records)
    hashes = [record.get("config_hash") for record in records.values()]
    seed = records["global"]["seed"]
    name = f"seed{seed}-fused-{digest([hashes, [str(folder.path.resolve()) for folder in folders.values()]])}"
    target = RunFolder(Path(out) if out is not None else folders["global"].path.parent / name)
    _check_target(target)
    rows = fused(*(_rows(folder.path / "scores.csv") for folder in folders.values()))
    held_out = _held_out(folders)
    record = _record(folders, records, rows, held_out)
    with target:
        target.clear()
        target.write_scores("scores.csv", rows)
        target.write_scores("calibration.csv", held_out)
        _copy(folders["global"].config_file, target.config_file)
        target.write_metrics(record)
    return record, target.path


def _finished(folder: Any, scale: str) -> dict[str, Any]:
    from adbench.types import UserError

    record = folder.metrics()
    if record.get("status") != "finished":
        raise UserError(
            f"{folder.path} is not a finished run (status {record.get('status')}); the run's own command continues it"
        )
    scales = folder.config().method.get("scales")
    if scales is None or list(scales) != [scale]:
        raise UserError(
            f"{folder.path} is no run with method.scales=[{scale}] (it has {scales}): python -m adbench.fuse "
            "RUN_GLOBAL RUN_LOCAL takes a run of whole images and one of patches, in this order"
        )
    return record


def _check_same(records: dict[str, dict[str, Any]]) -> None:
    from adbench.types import UserError

    for key in SAME:
        ours, theirs = records["global"].get(key), records["local"].get(key)
        if ours != theirs:
            raise UserError(f"the runs differ in {key}: {ours} and {theirs}; only scores of the same rows can be added")


def _check_target(target: Any) -> None:
    from adbench.types import UserError

    if target.path.exists() and any(target.path.iterdir()) and "fused" not in target.metrics():
        raise UserError(f"{target.path} holds something else than fused scores; give another folder with --out")


def _rows(path: Path) -> list[Row]:
    from adbench.types import UserError

    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [
                Row(int(row["index"]), row["path"], int(row["label"]), row["defect"], float(row["score"]))
                for row in csv.DictReader(file)
            ]
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path} is missing or damaged ({error}); the run's own command writes it again") from error


def _held_out(folders: dict[str, Any]) -> list[Row]:
    """The held-out rows with added scores; none, and no threshold, where the runs held out none or other rows."""
    from adbench.types import UserError

    try:
        return fused(*(_rows(folder.path / "calibration.csv") for folder in folders.values()))
    except UserError:
        return []


def _record(
    folders: dict[str, Any], records: dict[str, dict[str, Any]], rows: list[Row], held_out: list[Row]
) -> dict[str, Any]:
    import numpy as np

    from adbench.evaluation.metrics import bootstrap_auroc, curve, image_metrics
    from adbench.evaluation.thresholds import held_out_threshold
    from adbench.experiment import provenance
    from adbench.experiment.identity import digest

    whole, patches = records["global"], records["local"]
    score, label = np.array([row.score for row in rows]), np.array([row.label for row in rows])
    defect = np.array([row.defect for row in rows])
    threshold = None
    if held_out:
        quantile = (whole.get("threshold") or {}).get("quantile") or 0.95
        threshold = held_out_threshold([row.score for row in held_out], quantile)
    per_defect = {}
    for kind in np.unique(defect[label == 1]) if 0 < label.sum() < len(label) else ():
        chosen = (label == 0) | (defect == kind)
        per_defect[str(kind)] = curve(score[chosen], label[chosen]).auroc()  # type: ignore[union-attr]
    changes = {
        scale: {k: v for k, v in (record.get("changed") or {}).items() if k != "method.scales"}
        for scale, record in records.items()
    }
    now = provenance.now()
    same = (*SAME, "data_kind", "normal_class", "selection", "pretraining_images")
    budget = {"name": _joined(*(str((record.get("budget") or {}).get("name")) for record in records.values()))}
    parameters = sum((record.get("counts") or {}).get("parameters", 0) for record in records.values())
    return {
        **{key: whole[key] for key in same if key in whole},
        "pretraining": _joined(whole["pretraining"], patches["pretraining"]),
        "budget": (whole.get("budget") or {}) | budget,
        "status": "finished", "error": None,
        "config_hash": digest([record.get("config_hash") for record in records.values()], 12),
        "fused": {scale: str(folder.path.resolve()) for scale, folder in folders.items()},
        "changed": {"fused": changes},
        "threshold": threshold,
        "metrics": image_metrics(score, label, None if threshold is None else threshold["value"]),
        "per_defect_image_auroc": per_defect,
        "image_auroc_interval_95": bootstrap_auroc(score, label, seed=0),
        "counts": (whole.get("counts") or {}) | {"parameters": parameters},
        "time": {"started": now, "finished": now}, "versions": provenance.versions(), "git": provenance.git(),
    }  # fmt: skip


def _joined(*names: str) -> str:
    return " + ".join(dict.fromkeys(names))


def _copy(source: Path, target: Path) -> None:
    from adbench.files import write_text

    write_text(target, source.read_text(encoding="utf-8"))


if __name__ == "__main__":
    sys.exit(main())
