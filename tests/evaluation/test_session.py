"""A run and an evaluation of it test in one way, and a test encodes an image once."""

import shutil

import pytest
import torch
from conftest import metrics_of

from adbench.evaluate import main as evaluate
from adbench.evaluation import session
from adbench.evaluation.observers import Observer
from adbench.experiment import record
from adbench.experiment.folder import RunFolder
from adbench.experiment.groups import conf_dir
from adbench.experiment.ranks import Bystander


def tested_files(folder):
    """What a test leaves: scores, curves and pictures, by name."""
    files = [folder / "scores.csv", folder / "curves.json", *(folder / "figures").rglob("*")]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files if file.is_file()}


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [(("method=pwae/small", "data=mvtec/bottle", "data.image_size=48"), "ablation/sum_image_auroc"),
     (("method=cbigan/small", "data=mvtec/bottle"), "pixel_pro")],
)  # fmt: skip
def test_an_evaluation_of_the_runs_own_data_leaves_the_files_and_the_numbers_of_the_run(finished, arguments, extra):
    run = finished(*arguments, "evaluation.gallery=2", "evaluation.codes=5")
    assert evaluate([str(run)]) == 0
    folder = run / "evaluations" / "mvtec" / "bottle"
    own, again = tested_files(run), tested_files(folder)
    assert set(own) == set(again)
    assert {"scores.csv", "curves.json", "figures/panels.png", "figures/gallery.json"} <= set(own)
    assert "figures/gallery-found-1.jpg" in own and "figures/gallery-found-2.jpg" not in own
    assert {name for name in own if own[name] != again[name]} == set()
    before, after = metrics_of(run), metrics_of(folder)
    for key in ("metrics", "per_defect_image_auroc", "image_auroc_interval_95", "counts", "data_report", "data_id"):
        assert after[key] == before[key], key
    assert extra in after["metrics"]
    assert after["threshold"]["value"] == before["threshold"]["value"]


def test_the_pictures_of_an_evaluation_are_as_many_as_asked_for(finished):
    run = finished("method=cbigan/small", "data=mvtec/bottle")
    assert evaluate([str(run), "evaluation.gallery=0"]) == 0
    folder = run / "evaluations" / "mvtec" / "bottle" / "figures"
    assert (folder / "panels.png").exists() and not list(folder.glob("gallery*"))


def test_an_older_runs_options_leave_the_number_of_pictures_at_its_default():
    assert session.Pictures.of({"quantile": 0.9, "panels_normal": 1}) == session.Pictures(panels_normal=1)


def test_another_rank_writes_nothing_that_rank_0_writes():
    writers = {name for name in vars(RunFolder) if name.startswith("write_")} | {"clear"}
    assert writers <= set(vars(Bystander))


def test_the_shares_of_all_ranks_come_in_their_order_to_every_rank(monkeypatch):
    class Rank(Observer):
        def share(self):
            return "mine"

        def finish(self, shares, method):
            self.shares = shares

    monkeypatch.setattr(
        torch.distributed, "all_gather_object", lambda out, mine: out.__setitem__(slice(None), ["first", mine])
    )
    observer = Rank()
    for world, shares in ((2, ["first", "mine"]), (1, ["mine"])):
        observer.on_test_epoch_end(type("Trainer", (), {"world_size": world}), None)
        assert observer.shares == shares


# -- metrics.json ------------------------------------------------------------------------------------------------------


def inner(values, prefix=""):
    """Every key of nested objects that the documentation lists one by one, as it names them."""
    documented = record.keys()
    for key, value in values.items():
        yield prefix + key
        if isinstance(value, dict) and any(name.startswith(f"{prefix}{key}.") for name in documented):
            yield from inner(value, f"{prefix}{key}.")


def test_the_documentation_of_metrics_json_is_that_of_the_code():
    assert record.documentation() in (conf_dir().parent / "docs" / "run_folder.md").read_text(encoding="utf-8")


def test_every_key_of_a_run_and_of_an_evaluation_is_documented_and_no_other_is(finished):
    run = finished("method=cbigan/small", "data=mvtec/bottle")
    assert evaluate([str(run)]) == 0
    keys = set(inner(metrics_of(run))) | set(inner(metrics_of(run / "evaluations" / "mvtec" / "bottle")))
    elsewhere = {"pretraining_weights", "pretraining_images", "time.pretraining_s"}  # this run has no pretraining
    if metrics_of(run)["git"] is None:  # no checkout
        elsewhere |= {"git.commit", "git.modified"}
    assert set(record.keys()) == keys | elsewhere


def test_a_users_own_folder_has_its_own_name_as_data_id(run, data_root, tmp_path):
    shutil.copytree(data_root / "mvtec" / "bottle", tmp_path / "parts")
    code, folder = run("method=pca", "data=folder", "data.name=screws", f"data.root={tmp_path / 'parts'}")
    assert code == 0
    assert (metrics_of(folder)["data"], metrics_of(folder)["data_id"]) == ("folder", "screws")


def test_a_record_holds_what_is_known_and_null_where_a_value_is_none():
    assert record.RunRecord(method="pca", error=None, seed=0).as_json() == {
        "method": "pca", "data": "", "protocol": "", "pretraining": "", "seed": 0, "error": None, "metrics": {},
        "counts": {}, "time": {}, "hardware": {},
    }  # fmt: skip
