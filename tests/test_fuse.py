"""The scores of IGD's two scales, trained apart, are added row by row or not at all."""

import csv
import json

import pytest
import yaml

from adbench.report.collect import read_run
from adbench.studies import fuse
from adbench.types import UserError

ROWS = [("good/0.png", 0, "good"), ("good/1.png", 0, "good"), ("hole/0.png", 1, "hole"), ("cut/0.png", 1, "cut")]
SCORES = {"global": [0.1, 0.4, 0.5, 0.2], "local": [0.2, 0.1, 0.1, 0.5]}  # apart .75 and .625, added 1
HELD = {"global": [0.1, 0.2], "local": [0.3, 0.1]}


def written(path, scores, rows=ROWS):
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["index", "path", "label", "defect", "score"])
        writer.writerows((i, *row, score) for i, (row, score) in enumerate(zip(rows, scores, strict=False)))


@pytest.fixture
def make(tmp_path):
    def run(scale, rows=ROWS, held=True, **changes):
        folder = tmp_path / "results" / "igd" / "mvtec" / "bottle" / "one_class" / "none" / f"seed0-{scale}"
        (folder / ".hydra").mkdir(parents=True, exist_ok=True)
        record = {
            "method": "igd", "data": "mvtec/bottle", "protocol": "one_class", "pretraining": "none", "seed": 0,
            "status": "finished", "data_fingerprint": "abc", "config_hash": scale, "metrics": {"pixel_auroc": 0.9},
            "changed": {"method.scales": [scale]}, "budget": {"name": "paper", "batches": 10, "batch_size": 16},
            "counts": {"train": 5, "parameters": 7}, "threshold": {"value": 0.1, "quantile": 0.6},
        } | changes  # fmt: skip
        if scale == "local":
            record["changed"]["data.batch_size"] = 2
        (folder / "metrics.json").write_text(json.dumps(record))
        config = {"method": {"_target_": "adbench.methods.igd.IGD", "scales": [scale]}, "data": {"id": "mvtec/bottle"}}
        (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config))
        written(folder / "scores.csv", SCORES[scale], rows)
        written(folder / "calibration.csv", HELD[scale] if held else [])
        return folder

    return run


def test_scores_of_the_same_rows_are_added_and_measured(make):
    record, folder = fuse.fuse(make("global"), make("local"))
    rows = fuse._rows(folder / "scores.csv")
    assert [row.score for row in rows] == pytest.approx([0.3, 0.5, 0.6, 0.7])
    assert [tuple(row[1:4]) for row in rows] == ROWS
    assert record["metrics"]["image_auroc"] == 1.0
    assert record["per_defect_image_auroc"] == {"cut": 1.0, "hole": 1.0}
    assert record["threshold"]["value"] == pytest.approx(0.4)  # of held-out sums 0.4 and 0.3
    assert record["metrics"]["image_balanced_accuracy"] == 0.75
    assert "pixel_auroc" not in record["metrics"]
    assert json.loads(json.dumps(record)) == json.loads((folder / "metrics.json").read_text())


def test_the_report_reads_fused_scores_as_a_variant_of_their_own(make, tmp_path):
    first, second = make("global"), make("local", pretraining="imagenet_kd")
    record, folder = fuse.fuse(first, second)
    assert record["fused"] == {"global": str(first), "local": str(second)}
    run = read_run(folder, tmp_path / "results")
    assert run.status == "finished" and run.data == "mvtec/bottle" and len(run.rows.score) == 4
    assert run.variant.pretraining == "none + imagenet_kd"
    assert dict(run.variant.changed) == {"fused": json.dumps({"global": {}, "local": {"data.batch_size": 2}})}
    assert folder.parent == first.parent


def test_fusing_again_writes_the_same_folder_and_nothing_else_is_overwritten(make, tmp_path):
    first, second = make("global"), make("local")
    assert fuse.fuse(first, second)[1] == fuse.fuse(first, second)[1]
    with pytest.raises(UserError, match="holds something else"):
        fuse.fuse(first, second, out=first)
    assert fuse.fuse(first, second, out=tmp_path / "here")[1] == tmp_path / "here"


def test_without_held_out_rows_there_is_no_threshold(make):
    record, folder = fuse.fuse(make("global", held=False), make("local", held=False))
    assert record["threshold"] is None
    assert record["metrics"]["image_balanced_accuracy"] is None
    assert fuse._rows(folder / "calibration.csv") == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"status": "interrupted"}, "not a finished run"),
        ({"data_fingerprint": "other"}, "differ in data_fingerprint: abc and other"),
        ({"seed": 1}, "differ in seed: 0 and 1"),
        ({"data": "mvtec/cable"}, "differ in data"),
        ({"rows": ROWS[:3]}, "scored 4 and 3 rows"),
        ({"rows": [*ROWS[:3], ("cut/9.png", 1, "cut")]}, r"cut/0\.png .* and cut/9\.png"),
    ],
)
def test_scores_that_are_not_of_the_same_rows_are_refused_and_nothing_is_written(make, tmp_path, changes, message):
    first, second = make("global"), make("local", **changes)
    with pytest.raises(UserError, match=message):
        fuse.fuse(first, second, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_two_runs_of_one_scale_or_in_the_other_order_are_refused_on_the_command_line(make, capsys):
    first, second = make("global"), make("local")
    assert fuse.main([str(second), str(first)]) == 1
    assert "method.scales=[global]" in capsys.readouterr().err
    assert fuse.main([str(first), str(second)]) == 0
    assert "image_auroc" in capsys.readouterr().out
