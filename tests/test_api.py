"""The Python API: what a notebook does, twice in one process, and what the command line does."""

import csv
import importlib
import logging
import signal
import threading
import time
import warnings

import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

import adbench
from adbench.errors import UserError
from adbench.testing import trains

SMALL = {"width": 8, "latent": 16}
SHORT = ["budget.max_batches=6", "trainer.threads=1"]


@pytest.fixture
def places(tmp_path, tmp_path_factory):
    cache = tmp_path_factory.getbasetemp() / "cache"
    return {"results": tmp_path / "results", "overrides": [*SHORT, f"cache_dir={cache}"]}


def test_a_notebook_trains_twice_and_leaves_no_state_behind_and_the_command_line_gives_the_same_bytes(places, run):
    hydra = HydraConfig.instance().cfg  # of an earlier test in this process
    before = (warnings.showwarning, list(warnings.filters), logging.getLogger("adbench").handlers[:],
              signal.getsignal(signal.SIGINT), logging.root.handlers[:])  # fmt: skip
    first = adbench.train("autoencoder", data="digits", seed=3, trainer="cpu", **SMALL, **places)
    second = adbench.train("autoencoder", data="digits", seed=4, trainer="cpu", **SMALL, **places)
    assert not GlobalHydra.instance().is_initialized()
    assert HydraConfig.instance().cfg is hydra
    assert before == (warnings.showwarning, list(warnings.filters), logging.getLogger("adbench").handlers[:],
                      signal.getsignal(signal.SIGINT), logging.root.handlers[:])  # fmt: skip
    assert first.path != second.path
    assert 0 <= first.metrics["image_auroc"] <= 1
    assert (first.path / "run.log").read_text().count("autoencoder on digits") == 2
    words = [f"method.{key}={value}" for key, value in SMALL.items()]
    code, folder = run("method=autoencoder", "data=digits", "seed=3", "trainer=cpu", *words, "budget.max_batches=6",
                       smoke=False)  # fmt: skip
    assert code == 0
    assert folder.relative_to(folder.parents[4]) == first.path.relative_to(first.path.parents[4])
    assert (folder / "scores.csv").read_bytes() == (first.path / "scores.csv").read_bytes()


def test_a_run_has_its_metrics_scores_and_detector_and_a_finished_one_is_not_trained_again(places, capsys):
    first = adbench.train("pca", data="digits", trainer="cpu", **places)
    again = adbench.train("pca", data="digits", trainer="cpu", **places)
    assert "Already finished" in capsys.readouterr().out
    assert again.path == first.path
    scores = first.scores
    with (first.path / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(scores.columns) == ["index", "path", "label", "defect", "score"]
    assert scores["score"].tolist() == [float(row["score"]) for row in rows]
    assert set(scores["label"]) == {0, 1}
    found = first.detector().score(np.zeros((20, 20, 3), np.uint8))
    assert found.image.shape == (1,)
    assert "pca on digits, seed 0, finished: image_auroc" in repr(first)
    assert "<img" in first._repr_html_()
    assert repr(adbench.load(first)) == repr(adbench.load(first.path))


def test_all_three_folders_have_a_name_of_their_own(tmp_path):
    folders = {name: tmp_path / name for name in ("results", "data_root", "cache_dir")}
    run = adbench.train("brightness", data="digits", trainer="cpu", overrides=["trainer.threads=1"], **folders)
    assert run.path.is_relative_to(folders["results"])
    written = (run.path / ".hydra" / "config.yaml").read_text()
    assert f"cache_dir: {folders['cache_dir']}" in written
    assert f"data_root: {folders['data_root']}" in written


def test_compare_is_a_table_of_all_runs_and_evaluate_never_trains(places):
    runs = [adbench.train(method, data="digits", trainer="cpu", **places) for method in ("pca", "brightness")]
    table = adbench.compare(places["results"])
    assert sorted(table["method"]) == ["brightness", "pca"]
    wanted = {run.record["method"]: run.metrics["image_auroc"] for run in runs}
    assert dict(zip(table["method"], table["image_auroc"], strict=True)) == wanted
    evaluated = adbench.evaluate(runs[0])
    assert evaluated.path.is_relative_to(runs[0].path / "evaluations")
    assert evaluated.metrics == runs[0].metrics
    importlib.import_module("adbench.evaluate")  # takes the function's place, and can be called as it
    assert adbench.evaluate(runs[0]).metrics == runs[0].metrics


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: adbench.train("pac", data="digits", **p), "did you mean pca"),
        (lambda p: adbench.train("pca", data="digits", component=3, **p), "components"),
        (lambda p: adbench.train("pca", data="digits", components="few", **p), "method.components must be"),
        (lambda p: adbench.compare("/nowhere/at/all"), "there is no folder"),
        (lambda p: adbench.create_method("cbigan", kind="tabular"), "takes data of kind"),
        (lambda p: adbench.create_method("pca", image_size="x"), "a side or .height, width. in pixels, got 'x'"),
        (lambda p: adbench.create_method("pca", image_size=(8, 8, 3)), r"in pixels, got \(8, 8, 3\)"),
        (lambda p: adbench.fit("pca", None), "a method of adbench.create_method, got str"),
        (lambda p: adbench.fit(adbench.create_method("pca"), str(p)), "a data module of adbench.create_data, got str"),
        (lambda p: adbench.evaluate("/nowhere/at/all"), "there is no"),
    ],
)
def test_a_mistake_is_one_error_that_says_what_to_type(places, call, message):
    with pytest.raises(UserError, match=message):
        call(places)
    assert not places["results"].exists() or not list(places["results"].rglob("metrics.json"))


def test_values_of_any_type_reach_the_method_as_they_are():
    method = adbench.create_method("cbigan/small", kind="texture", image_size=64, latent=7)
    assert method.data_advice["image_size"] == 64
    assert adbench.create_method("pca", components=5).components == 5
    odd = adbench.api._quoted({"a": [1, None, True, "it's", 1e-5]})
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_override(f"key={odd}").value()
    assert parsed == {"a": [1, None, True, "it's", 1e-5]}


def test_a_method_and_its_data_can_be_made_and_fitted_without_a_run_folder(tmp_path):
    method = adbench.create_method("autoencoder", kind="small", width=8, latent=16)
    assert trains(method)
    data = adbench.create_data("digits", method=method, normal_class=1, overrides=[f"cache_dir={tmp_path}"])
    fitted = adbench.fit(method, data, max_batches=4, accelerator="cpu", enable_progress_bar=False)
    assert fitted.batches_seen == 4
    assert bool(fitted.calibrated)
    image = next(iter(data.holdout_batches("cpu"))).image
    with torch.no_grad():
        assert torch.isfinite(fitted.score(image).image).all()
    pca = adbench.fit(
        adbench.create_method("pca", kind="small", components=4), data, accelerator="cpu", enable_progress_bar=False
    )
    assert bool(pca.prepared)


def test_ctrl_c_leaves_a_folder_that_the_same_call_resumes(places):
    options = dict(places, overrides=[*places["overrides"], "budget.max_batches=4000", "budget.checkpoint_every=5"])
    folder = places["results"]

    def interrupt() -> None:
        while not list(folder.rglob("last.ckpt")):
            time.sleep(0.05)
        signal.raise_signal(signal.SIGINT)

    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        adbench.train("autoencoder", data="digits", trainer="cpu", **SMALL, **options)
    thread.join()
    run = adbench.Run(next(folder.rglob("metrics.json")).parent)
    assert run.record["status"] == "interrupted"
    seen = torch.load(run.path / "checkpoints/last.ckpt", weights_only=True)["batches_seen"]
    assert 0 < seen < 4000
