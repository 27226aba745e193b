"""Run folders made by hand, so that what a report must say of them is known."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

PAPER_BUDGET = {"max_batches": 1000, "max_epochs": None}
DEFAULT_ROWS = [("test/good/0.png", 0, "good", 0.1), ("test/good/1.png", 0, "good", 0.4), ("test/a/0.png", 1, "a", 0.3),
                ("test/a/1.png", 1, "a", 0.9)]  # fmt: skip


class Results:
    """A results folder under construction."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True)

    def run(
        self,
        method: str = "cbigan",
        data: str = "mvtec/bottle",
        seed: int = 0,
        metrics: dict[str, Any] | None = None,
        *,
        protocol: str = "one_class",
        values: dict[str, Any] | None = None,
        holdout: float | None = 0,
        pretraining: str = "none",
        budget: str = "paper",
        length: dict[str, Any] | None = None,
        status: str = "finished",
        changed: dict[str, Any] | None = None,
        rows: list[tuple[str, int, str, float]] | None = None,
        suffix: str = "",
        place: dict[str, Any] | None = None,
        **record: Any,
    ) -> Path:
        """Write one run as the run command would; `length` is what the budget was set to, default its own.

        `place` is what the node `data` has beside the id, such as the folder that a user's images are in.
        """
        rows = DEFAULT_ROWS if rows is None else rows
        metrics = {"image_auroc": 0.75} if metrics is None else metrics
        shown = "_".join([protocol, *(str(v) for k, v in (values or {}).items() if k != "_target_")][:2])
        folder = self.path / method.replace("/", "-") / data / shown / pretraining / f"seed{seed}{suffix}"
        (folder / ".hydra").mkdir(parents=True)
        everything = {
            "method": method, "data": data.rsplit("/", 1)[0], "protocol": protocol, "pretraining": pretraining,
            "seed": seed, "status": status, "error": None, "selection": "last batch",
            "metrics": metrics if status == "finished" else {}, "changed": changed or {},
            "budget": {"name": budget, "batches": 1000, "batch_size": 8}, "counts": {"train": 10, "test_normal": 2},
            "threshold": {"value": 0.35, "quantile": 0.95, "n": 10},
            "time": {"finished": "2026-01-01T00:00:00+00:00", "total_s": 12.5}, "config_hash": "abc",
        }  # fmt: skip
        (folder / "metrics.json").write_text(json.dumps(everything | record))
        config = {
            "method": {"recipe": {"budget": {"paper": PAPER_BUDGET, "quick": {"max_batches": 100}}}},
            "data": {"id": data, **(place or {})}, "protocol": {"id": shown, "holdout": holdout, **(values or {})},
            "pretraining": {"id": pretraining},
            "budget": {"name": budget, **(length or (PAPER_BUDGET if budget == "paper" else {"max_batches": 100}))},
        }  # fmt: skip
        (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config))
        if status == "finished":
            with (folder / "scores.csv").open("w", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(["index", "path", "label", "defect", "score"])
                writer.writerows((i, *row) for i, row in enumerate(rows))
        return folder


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return Results(tmp_path / "results")


def add_pictures(folder: Path, entries: list[dict[str, Any]] | None = None) -> None:
    """panels.png, and a gallery with one picture for each entry."""
    (folder / "figures").mkdir(exist_ok=True)
    Image.new("RGB", (60, 40), "red").save(folder / "figures" / "panels.png")
    for entry in entries or []:
        Image.new("RGB", (60, 20), "blue").save(folder / "figures" / Path(entry["file"]).name)
    if entries is not None:
        (folder / "figures" / "gallery.json").write_text(json.dumps(entries))


@pytest.fixture
def pictures():
    return add_pictures


@pytest.fixture
def gather():
    """`gather(results)`: the contents of its report."""
    from adbench.report.contents import gather as of

    return lambda results: of(results.path, results.path / "report")


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str]):
    """`report(results, *options)` -> (exit code, report folder, what was printed): the command in this process."""
    from adbench.report.__main__ import main

    def call(results: Results, *options: str) -> tuple[int, Path, str]:
        code = main([str(results.path), *options])
        captured = capsys.readouterr()
        return code, results.path / "report", captured.out + captured.err

    return call
