"""A run and an evaluation of it test in one way, and a test encodes an image once."""

import shutil

import pytest
import torch
from conftest import metrics_of
from pytorch_lightning import Trainer

from adbench.evaluate import main as evaluate
from adbench.evaluation import session
from adbench.evaluation.observers import Observer
from adbench.experiment import record
from adbench.experiment.build import load_method, stored_datamodule
from adbench.experiment.folder import RunFolder
from adbench.experiment.groups import conf_dir
from adbench.experiment.ranks import Bystander


def files_of_the_test(folder):
    """What a test leaves: scores, curves and pictures, by name."""
    files = [folder / "scores.csv", folder / "curves.json", *(folder / "figures").rglob("*")]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files if file.is_file()}


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [pytest.param(("method=pwae/small", "data=mvtec/bottle", "data.image_size=48"), "ablation/sum_image_auroc",
                  marks=pytest.mark.slow),
     (("method=cbigan/small", "data=mvtec/bottle"), "pixel_pro")],
)  # fmt: skip
def test_an_evaluation_of_the_runs_own_data_leaves_the_files_and_the_numbers_of_the_run(finished, arguments, extra):
    run = finished(*arguments, "evaluation.gallery=2", "evaluation.codes=5")
    assert evaluate([str(run)]) == 0
    folder = run / "evaluations" / "mvtec" / "bottle"
    own, again = files_of_the_test(run), files_of_the_test(folder)
    assert set(own) == set(again)
    assert {"scores.csv", "curves.json", "figures/panels.png", "figures/gallery.json"} <= set(own)
    assert "figures/gallery-found-1.jpg" in own and "figures/gallery-found-2.jpg" not in own
    assert {name for name in own if own[name] != again[name]} == set()
    before, after = metrics_of(run), metrics_of(folder)
    for key in ("metrics", "per_defect_image_auroc", "image_auroc_interval_95", "counts", "data_report", "data_id"):
        assert after[key] == before[key], key
    assert extra in after["metrics"]
    assert after["threshold"]["value"] == before["threshold"]["value"]


@pytest.mark.slow
def test_the_pictures_of_an_evaluation_are_as_many_as_asked_for(finished):
    run = finished("method=cbigan/small", "data=mvtec/bottle")
    assert evaluate([str(run), "evaluation.gallery=0"]) == 0
    folder = run / "evaluations" / "mvtec" / "bottle" / "figures"
    assert (folder / "panels.png").exists() and not list(folder.glob("gallery*"))


def test_what_an_evaluation_does_not_change_is_the_runs_own(finished):
    """The data's place and class stood on the run's command line, not in any configuration file."""
    run = finished("method=pca", "data=digits", "data.normal_class=3")
    for overrides in (["evaluation.gallery=0"], ["data=digits", "evaluation.quantile=0.6"]):
        assert evaluate([str(run), *overrides]) == 0
        folder = run / "evaluations" / "digits" / "3"
        assert (folder / "scores.csv").read_bytes() == (run / "scores.csv").read_bytes()
    assert metrics_of(folder)["threshold"]["quantile"] == 0.6
    assert evaluate([str(run), "data.normal_class=4"]) == 0
    assert metrics_of(run / "evaluations" / "digits" / "4")["data_id"] == "digits/4"


@pytest.mark.slow
def test_a_place_that_stood_on_the_runs_command_line_stays_that_of_its_evaluations(finished, data_root, tmp_path):
    shutil.copytree(data_root / "mvtec", tmp_path / "elsewhere")
    run = finished("method=pca", "data=mvtec/bottle", f"data.source.root={tmp_path / 'elsewhere'}")
    folder = run / "evaluations" / "mvtec" / "bottle"
    assert evaluate([str(run), "data.workers=0"]) == 0
    assert (folder / "scores.csv").read_bytes() == (run / "scores.csv").read_bytes()
    shutil.move(tmp_path / "elsewhere", tmp_path / "there")
    assert evaluate([str(run), "evaluation.gallery=0"]) == 1
    assert evaluate([str(run), f"data.source.root={tmp_path / 'there'}"]) == 0


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
    elsewhere = {
        "pretraining_weights",
        "pretraining_images",
        "time.pretraining_s",
        "transductive",
    }  # this run has no pretraining
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


# -- what comes with the scores ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "codes"), [("pwae/small", 3), ("esad/small", 3), pytest.param("igd/small", 0, marks=pytest.mark.slow)]
)
def test_a_test_encodes_each_image_once(finished, name, codes):
    folder = RunFolder(finished(f"method={name}", "data=mvtec/bottle"))
    cfg, method = folder.config(), load_method(folder)
    datamodule = stored_datamodule(cfg, method.supervision, folder.config_file)
    datamodule.setup()
    rows = []
    for module_name, module in method.named_modules():
        if module_name.rpartition(".")[2] == "encoder":
            module.register_forward_hook(lambda _, given, __: rows.append(len(given[0])))
    with torch.no_grad():
        for batch in datamodule.test_dataloader():
            method.score(datamodule.on_after_batch_transfer(batch, 0).image)
    once, rows[:] = sum(rows), []
    none = dict.fromkeys(session.Pictures.__dataclass_fields__, 0)
    pictures = session.Pictures(**none | {"codes": codes})
    measurement = session.test(
        method, datamodule, RunFolder(folder.path / "again"), pictures, threshold=None, offset=0.0,
        trainer_with=lambda callbacks: Trainer(
            accelerator="cpu", devices=1, logger=False, callbacks=callbacks, enable_progress_bar=False
        ),
    )  # fmt: skip
    assert any(key.startswith("ablation/") for key in measurement.metrics)
    assert sum(rows) == once > 0
