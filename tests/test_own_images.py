"""A folder of one's own images, from the command to the scores of new ones."""

import csv
import json
import re
import shutil

import numpy as np
import pytest
from conftest import metrics_of
from omegaconf import OmegaConf
from PIL import Image

import adbench
from adbench.experiment import own_images
from adbench.experiment.own_images import folder_name, with_method
from adbench.run import main
from adbench.testing import striped


def write(root, good="good", bad="bad", count=12, defects=4, size=40):
    rng = np.random.default_rng(5)
    for folder, number in ((good, count), (bad, defects)):
        for i in range(number):
            image = striped(rng, size)
            if folder == bad:
                y, x = rng.integers(2, size - 12, 2)
                image[y : y + 9, x : x + 9] = 250
            path = root / folder / f"{folder.rpartition('/')[2]}_{i:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    return root


def rows_of(folder, name):
    with (folder / name).open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def parts(tmp_path):
    return write(tmp_path / "my parts (1)")


# -- one command ------------------------------------------------------------------------------------------------------


def test_the_folder_alone_is_enough(run, parts, capsys):
    code, folder = run("method=pca", "data=folder", f"data.root={parts}")
    said = capsys.readouterr().out
    assert code == 0
    record = metrics_of(folder)
    assert record["data_id"] == "my parts (1)"
    assert "/my_parts_1/one_class/none/seed0-" in folder.as_posix()  # a smoke run's hash and no other
    assert [record["counts"][key] for key in ("train", "holdout", "test_normal", "test_anomalous")] == [10, 0, 2, 4]
    table = [line.split() for line in said.splitlines() if re.match(r" +(folder|good|bad) ", line)]
    assert table == [["folder", "images", "taken", "as", "train", "test"], ["good", "12", "normal", "10", "2"],
                     ["bad", "4", "anomalous:", "bad", "4"]]  # fmt: skip
    assert record["data_report"]["folders"][0]["taken_as"] == "normal"
    assert "pca: a check of any data set" in said.splitlines()[0] + said.splitlines()[1]


def test_the_kind_is_measured_said_and_stored_and_the_users_word_wins(run, parts, capsys):
    _, folder = run("method=pca", "data=folder", "data.kind=auto", f"data.root={parts}")
    record = metrics_of(folder)
    measured = record["data_report"]["kind"]
    assert record["data_kind"] == measured["kind"]
    assert f"data.kind={measured['kind']}, measured" in capsys.readouterr().out
    assert OmegaConf.load(folder / ".hydra/config.yaml").data.kind == measured["kind"]
    kind = {"object": "texture", "texture": "object"}[measured["kind"]]
    _, other = run("method=pca", "data=folder", f"data.kind={kind}", f"data.root={parts}")
    assert other != folder
    assert metrics_of(other)["data_kind"] == kind
    assert "kind" not in metrics_of(other)["data_report"]


@pytest.mark.parametrize(
    ("root", "name"), [("/a/b", "b"), ("/a/b/", "b"), ("./x y", "x y"), ("/a/größe", "größe"), ("/", "folder")]
)
def test_the_name_is_the_folders(root, name):
    assert folder_name(root) == name


def test_the_name_of_the_working_folder_is_its_own(tmp_path, monkeypatch):
    (tmp_path / "here" / "below").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here" / "below")
    assert folder_name(".") == "below"
    assert folder_name("..") == "here"


# -- no method chosen -------------------------------------------------------------------------------------------------


def test_with_weights_at_hand_a_folder_gets_the_reference_detector_and_a_line_says_so(monkeypatch):
    from adbench.pretraining import packaged

    monkeypatch.setattr(packaged, "packaged", lambda name: packaged.Packaged("file", "package"))
    words, said = with_method(["data=folder", "data.root=/x"])
    assert words == ["data=folder", "data.root=/x", "method=patchcore/small", "pretraining=imagenet"]
    assert "method=patchcore/small pretraining=imagenet" in said
    assert with_method(["data=folder", "pretraining=none"])[0][2:] == ["method=patchcore/small"]
    for chosen in (["data=folder", "method=pca"], ["data=digits"], [], ["data=folder", "experiment=first_look"]):
        assert with_method(chosen) == (chosen, "")


def test_without_weights_the_default_stays_and_the_line_says_what_brings_them(monkeypatch):
    from adbench.pretraining import packaged

    monkeypatch.setattr(packaged, "packaged", lambda name: None)
    words, said = with_method(["data=folder"])
    assert words == ["data=folder"]
    assert "adbench-vision[weights]" in said


def test_the_method_of_a_folder_has_the_backbone_whose_weights_are_looked_for():
    from adbench.experiment.groups import conf_dir

    text = (conf_dir() / "method" / f"{own_images.METHOD}.yaml").read_text()
    assert f"backbone: {own_images.BACKBONE}" in text


# -- held-out scores --------------------------------------------------------------------------------------------------


def test_cross_validated_scores_are_those_of_fits_without_the_fold(run, parts, monkeypatch):
    from adbench.evaluation import session

    kept = {}
    original = session.cross_validated

    def spy(method, datamodule, device):
        kept["folds"], kept["records"] = datamodule.folds, datamodule.records
        kept["rows"] = {int(i): image for b in datamodule.training_batches("cpu")
                        for i, image in zip(b.index, b.image, strict=True)}  # fmt: skip
        return original(method, datamodule, device)

    monkeypatch.setattr(session, "cross_validated", spy)
    code, folder = run("method=nearest_neighbour", "data=folder", f"data.root={parts}")
    assert code == 0
    rows = kept["rows"]
    wanted = {}
    for fold in kept["folds"]:
        others = [i for i in rows if i not in set(fold.tolist())]
        for i in fold.tolist():
            distance = min(float((rows[i] - rows[j]).double().norm()) for j in others)
            wanted[str(kept["records"].path[i])] = distance
    found = {row["path"]: float(row["score"]) for row in rows_of(folder, "calibration.csv")}
    assert found == pytest.approx(wanted, rel=1e-4)
    threshold = metrics_of(folder)["threshold"]
    assert threshold["n"] == 10
    assert threshold["origin"].startswith("5-fold cross-validation")


def test_the_final_model_is_fitted_on_all_rows(run, parts):
    _, folder = run("method=nearest_neighbour", "data=folder", f"data.root={parts}")
    detector = adbench.load(folder)
    trained = [row["path"] for row in json.loads((folder / "split.json").read_text()) if row["role"] == "train"]
    assert len(trained) == 10
    assert float(detector.score([parts / path for path in trained]).image.max()) < 1e-2


@pytest.mark.slow
def test_a_method_that_trains_holds_out_what_the_threshold_needs_and_says_where_it_cannot(run, tmp_path, capsys):
    for count, held_out, silent in ((60, 19, True), (12, 3, False), (4, 1, False)):
        root = write(tmp_path / f"n{count}", count=count)
        _, folder = run("method=autoencoder", "data=folder", f"data.root={root}", "data.image_size=32")
        record = metrics_of(folder)
        assert record["counts"]["holdout"] == held_out
        assert ("out of reach of" in capsys.readouterr().out) != silent
        low, high = record["threshold"]["false_alarm_interval_95"]
        assert 0 <= low < high <= 1


def test_other_data_sets_hold_out_what_they_held_out(run):
    _, folder = run("method=pca", "data=mvtec/bottle", "data.image_size=32")
    assert OmegaConf.load(folder / ".hydra/config.yaml").protocol.holdout == 0.05
    assert metrics_of(folder)["counts"]["holdout"] == 3


def test_cross_validation_of_a_method_with_training_steps_is_refused(run, parts, capfd):
    code, _ = run("method=cbigan/small", "data=folder", f"data.root={parts}", "protocol.holdout=cv")
    assert code == 1
    assert "take protocol.holdout=auto or a share" in "".join(capfd.readouterr())


# -- good images alone ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [3, 12])
def test_good_images_alone_all_train_and_the_last_line_says_how_to_score_new_ones(run, tmp_path, capsys, count):
    from adbench.evaluate import main as evaluate
    from adbench.export import main as export
    from adbench.predict import main as predict
    from adbench.report.__main__ import main as report

    parts = write(tmp_path / "parts", defects=0, count=count)
    code, folder = run("method=nearest_neighbour", "data=folder", f"data.root={parts}")
    said = capsys.readouterr().out
    assert code == 0
    record = metrics_of(folder)
    assert record["status"] == "finished"
    assert [record["counts"][key] for key in ("train", "test_normal", "test_anomalous")] == [count, 0, 0]
    assert set(record["metrics"].values()) == {None}
    assert "image_auroc" in record["metrics"]
    assert "null" not in said
    assert record["threshold"]["n"] == count
    assert (folder / "figures/scores.png").is_file()
    assert rows_of(folder, "scores.csv") == []
    last = said.strip().splitlines()[-1]
    assert last == f"score new images with: python -m adbench.predict {folder} DIR --out scored"
    assert "threshold" in said
    assert "by the share below: 0 %" in said
    bad = write(tmp_path / "new", count=5, defects=2)
    assert predict([str(folder), str(bad), "--out", str(tmp_path / "out"), "--maps", "none"]) == 0
    assert len(rows_of(tmp_path / "out", "scores.csv")) == 7
    assert evaluate([str(folder), f"data.root={bad}"]) == 0
    assert metrics_of(folder / "evaluations" / "new")["metrics"]["image_auroc"] is not None
    capsys.readouterr()
    assert evaluate([str(folder)]) == 1
    assert "no test image" in capsys.readouterr().err
    assert export([str(folder), "--format", "safetensors", "--out", str(tmp_path / "m.safetensors")]) == 0
    assert adbench.load(tmp_path / "m.safetensors").score(next((bad / "bad").iterdir())).image.shape == (1,)
    assert report([str(folder.parents[4])]) == 0
    assert main(["method=nearest_neighbour", "data=folder", f"data.root={parts}", "trainer=smoke"]) == 0
    assert "Already finished" in capsys.readouterr().out


# -- from end to end --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_from_photographs_to_a_graph_that_scores_the_folder_the_same(tmp_path, monkeypatch, capsys):
    from adbench.experiment.folder import latest_run
    from adbench.export import main as export
    from adbench.pretraining.packaged import packaged

    pytest.importorskip("onnxscript")
    if packaged(own_images.BACKBONE) is None:
        pytest.skip("the weights package is not installed")
    parts = write(tmp_path / "parts", size=64, count=20)
    line = ["data=folder", f"data.root={parts}", f"results={tmp_path / 'results'}", f"cache_dir={tmp_path / 'cache'}",
            "data.image_size=96", "trainer.threads=1"]  # fmt: skip
    assert main(line) == 0
    said = capsys.readouterr()
    assert "no method is chosen: method=patchcore/small pretraining=imagenet" in said.err
    folder = latest_run(tmp_path / "results" / "latest")
    assert folder.relative_to(tmp_path / "results").parts[:2] == ("patchcore-small", "parts")
    record = metrics_of(folder)
    assert record["metrics"]["image_auroc"] > 0.8
    assert record["threshold"]["origin"].startswith("5-fold cross-validation")
    assert (folder / "figures/panels.png").is_file()
    assert export([str(folder), "--out", str(tmp_path / "m.onnx")]) == 0
    graph = adbench.load(tmp_path / "m.onnx")
    rows = rows_of(folder, "scores.csv")
    scores = graph.score([parts / row["path"] for row in rows]).image.tolist()
    assert scores == pytest.approx([float(row["score"]) for row in rows], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["names", "nested", "link"])
def test_other_layouts_give_the_same_scores(run, tmp_path, layout):
    plain = write(tmp_path / "plain")
    other = tmp_path / "other"
    if layout == "names":
        other.mkdir()
        for path in plain.rglob("*.png"):
            shutil.copy(path, other / path.name)
    elif layout == "nested":
        shutil.copytree(plain, other / "from camera 1" / "2024")
    else:
        other.mkdir()
        (other / "OK").symlink_to(plain / "good")
        (other / "NOK").symlink_to(plain / "bad")
    scores = []
    for root in (plain, other):
        _, folder = run("method=pca", "data=folder", f"data.root={root}", "data.image_size=32")
        scores.append([(row["path"].rpartition("/")[2], row["score"]) for row in rows_of(folder, "scores.csv")])
    assert scores[0] == scores[1]


def test_a_detector_decides_as_its_runs_test_did_unless_another_rate_is_asked_for(run, parts, tmp_path):
    from adbench import load

    code, folder = run("method=pca", "data=folder", f"data.root={parts}", "evaluation.quantile=0.8")
    assert code == 0
    detector = load(folder)
    wanted = metrics_of(folder)["threshold"]
    assert detector.threshold()["value"] == wanted["value"] and detector.false_alarm_rate == 0.2
    assert detector.threshold(0.5)["value"] < wanted["value"]
    assert f"threshold {wanted['value']:.6g} at a false-alarm rate of 0.2" in repr(detector)


def test_predictions_below_the_images_are_not_scored_in_their_turn(run, parts, tmp_path):
    from adbench.predict import main as predict

    _, folder = run("method=pca", "data=folder", f"data.root={parts}")
    images = tmp_path / "images"
    shutil.copytree(parts, images)
    assert predict([str(folder), str(images), "--out", str(images / "scored")]) == 0
    first = len(rows_of(images / "scored", "scores.csv"))
    assert predict([str(folder), str(images), "--out", str(images / "again")]) == 0
    assert len(rows_of(images / "again", "scores.csv")) == first


def test_an_export_goes_into_a_folder_and_not_to_a_name_that_cannot_be_loaded(run, parts, tmp_path, capsys):
    from adbench.export import main as export

    _, folder = run("method=pca", "data=folder", f"data.root={parts}")
    assert export([str(folder), "--out", f"{tmp_path}/new/"]) == 0
    assert [file.suffix for file in sorted((tmp_path / "new").iterdir())] == [".json", ".onnx"]
    assert export([str(folder), "--out", str(tmp_path / "detector")]) == 1
    assert f"type --out {tmp_path / 'detector.onnx'}" in capsys.readouterr().err


def test_a_file_in_place_of_the_folder_is_named_and_the_folder_is_asked_for(run, tmp_path, capfd):
    picture = next((write(tmp_path / "parts") / "good").iterdir())
    code, _ = run("data=folder", f"data.root={picture}", "method=pca")
    assert code == 1
    said = "".join(capfd.readouterr())
    assert f"{picture} is a file; give the folder that your images lie in as data.root={picture.parent}" in said


@pytest.mark.parametrize("key", ["results", "data_root", "cache_dir"])
def test_a_file_where_a_folder_belongs_is_refused_by_name(run, tmp_path, capfd, key):
    file = tmp_path / "file"
    file.write_text("")
    for value in (file, file / "inside"):
        code, _ = run("data=digits", "method=pca", f"{key}={value}")
        assert code == 1
        assert f"{key}={value}: {file} is a file; give a folder" in capfd.readouterr().err


def test_a_file_in_the_environment_is_refused_by_the_variables_name(run, tmp_path, capfd, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ADBENCH_DATA", str(tmp_path / "file"))
    assert run("data=mvtec/bottle", "method=pca")[0] == 1
    assert f"ADBENCH_DATA={tmp_path / 'file'}" in capfd.readouterr().err


def test_an_evaluation_on_another_undivided_folder_tests_all_of_its_good_images(run, tmp_path, capsys):
    from adbench.evaluate import main as evaluate

    _, folder = run("method=pca", "data=folder", f"data.root={write(tmp_path / 'parts', count=20)}")
    other = write(tmp_path / "other", count=10, defects=3)
    assert evaluate([str(folder), "data=folder", f"data.root={other}"]) == 0
    record = metrics_of(folder / "evaluations" / "other")
    assert (record["counts"]["test_normal"], record["counts"]["test_anomalous"]) == (10, 3)
    assert record["counts"]["train"] == 0
    assert len(rows_of(folder / "evaluations" / "other", "scores.csv")) == 13
    assert evaluate([str(folder)]) == 0  # the run's own rows stay as they were divided
    assert metrics_of(folder / "evaluations" / "parts")["counts"]["test_normal"] == 4
    divided = write(tmp_path / "divided" / "test", count=4, defects=3).parent
    write(divided / "train", count=9, defects=0)
    assert evaluate([str(folder), "data=folder", f"data.root={divided}"]) == 0
    assert metrics_of(folder / "evaluations" / "divided")["counts"]["test_normal"] == 4


def test_a_run_ends_with_what_its_threshold_makes_of_the_test_rows(run, tmp_path, capsys):
    _, folder = run("method=pca", "data=folder", f"data.root={write(tmp_path / 'parts', count=40, defects=5)}")
    record, rows = metrics_of(folder), rows_of(folder, "scores.csv")
    above = [float(row["score"]) > record["threshold"]["value"] for row in rows]
    label = [int(row["label"]) for row in rows]
    wanted = {
        "found": sum(a and y for a, y in zip(above, label, strict=True)), "anomalous": 5,
        "false_alarms": sum(a and not y for a, y in zip(above, label, strict=True)), "normal": 8,
    }  # fmt: skip
    assert record["decisions"] == wanted
    said = capsys.readouterr().out
    assert f"at the threshold: found {wanted['found']} of 5 defects, called {wanted['false_alarms']} of 8 good" in said


def test_without_a_threshold_there_are_no_decisions(run, capsys):
    _, folder = run("method=pca", "data=digits", "protocol.holdout=0")
    assert metrics_of(folder)["decisions"] is None
    assert "at the threshold" not in capsys.readouterr().out
