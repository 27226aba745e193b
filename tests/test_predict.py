"""From a finished run to a user's own images."""

import csv
import doctest
import json
import os
import re
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import metrics_of, striped
from PIL import Image

import adbench
from adbench import export
from adbench.detection.detector import is_anomalous
from adbench.detection.maps import read_map, write_map
from adbench.detection.prediction import files_of, unique_names
from adbench.evaluation.overlay import map_range, map_scale
from adbench.predict import main
from adbench.types import UserError

PCA = ("method=pca", "data=mvtec/bottle", "data.image_size=32")


def table(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture
def trained(finished):
    """A finished run of a method with maps, on images of 40 px that it sees at 32."""
    return finished(*PCA)


def predict(*arguments):
    return main([str(argument) for argument in arguments])


CARPET = ("method=cbigan/small", "data=mvtec/carpet", "data.image_size=64")


@pytest.mark.parametrize("arguments", [PCA, CARPET, (*CARPET, "trainer.precision=bf16-mixed")])
def test_predict_gives_the_test_images_the_scores_of_the_test_step(finished, arguments, data_root, tmp_path):
    folder = finished(*arguments)
    category = metrics_of(folder)["data"].split("/")[1]
    assert predict(folder, data_root / "mvtec" / category / "test", "--out", tmp_path / "out", "--batch-size", 4) == 0
    wanted = {row["path"]: float(row["score"]) for row in table(folder / "scores.csv")}
    root = data_root / "mvtec" / category
    found = {os.path.relpath(row["path"], root): float(row["score"]) for row in table(tmp_path / "out" / "scores.csv")}
    assert found == pytest.approx(wanted, rel=1e-5)


def test_predict_gives_rows_of_a_table_the_scores_of_the_test_step(run, tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(90, 4)).astype(np.float32), np.arange(90) % 5 == 0
    np.savez(tmp_path / "t.npz", X=x, y=y)
    _, folder = run("method=kde", "data=tabular", "data.name=t", f"data.file={tmp_path / 't.npz'}", "data.features=4")
    with (tmp_path / "t.csv").open("w") as file:
        file.write("a,b,c,d\n" + "\n".join(",".join(f"{v:.9g}" for v in row) for row in x))
    assert predict(folder, tmp_path / "t.csv", "--out", tmp_path / "out", "--false-alarm-rate", 0.4) == 0
    found = [float(row["score"]) for row in table(tmp_path / "out" / "scores.csv")]
    tested = table(folder / "scores.csv")
    rows = [int(row["path"].rsplit("/", 1)[1]) for row in tested]
    assert [found[i] for i in rows] == pytest.approx([float(row["score"]) for row in tested], rel=1e-5)
    np.save(tmp_path / "wide.npy", np.zeros((2, 5)))
    assert predict(folder, tmp_path / "wide.npy", "--out", tmp_path / "out") == 1


def test_the_threshold_is_the_held_out_quantile_and_its_origin_is_stored(trained, data_root, tmp_path):
    out = tmp_path / "out"
    assert predict(trained, data_root / "mvtec/bottle/test", "--out", out, "--false-alarm-rate", 0.5) == 0
    held_out = sorted(float(row["score"]) for row in table(trained / "calibration.csv"))
    note = json.loads((out / "predict.json").read_text())
    assert note["threshold"]["value"] == pytest.approx(held_out[(len(held_out) - 1) // 2])
    assert note["threshold"]["origin"] == "held-out normal training samples of mvtec/bottle, pca, seed 0"
    assert note["threshold"]["n"] == len(held_out)
    for row in table(out / "scores.csv"):
        assert list(row) == ["path", "score", "threshold", "decision", "p_value"]
        above = sum(float(row["score"]) <= score for score in held_out)
        assert float(row["p_value"]) == pytest.approx((1 + above) / (1 + len(held_out)), rel=1e-5)
        assert row["decision"] == ("anomalous" if float(row["score"]) > float(row["threshold"]) else "normal")


def test_a_rate_too_small_for_the_held_out_images_gets_a_warning_with_the_attainable_one(
    trained, data_root, tmp_path, capsys
):
    out = tmp_path / "out"
    assert (
        predict(trained, data_root / "mvtec/bottle/test/good/000.png", "--out", out, "--false-alarm-rate", 0.001) == 0
    )
    n = len(table(trained / "calibration.csv"))
    said = capsys.readouterr().err
    assert said.count("--false-alarm-rate=0.001 is out of reach") == 1
    assert f"a rate of about {1 / (n + 1):.3g}" in said
    note = json.loads((out / "predict.json").read_text())
    assert note["threshold"]["false_alarm_rate"] == pytest.approx(1 / (n + 1))
    assert note["asked_false_alarm_rate"] == 0.001


def test_images_of_any_size_and_mode_are_scored_and_unreadable_ones_are_listed_at_the_end(trained, tmp_path, capsys):
    rng = np.random.default_rng(1)
    folder, out = tmp_path / "mine" / "deep", tmp_path / "out"
    folder.mkdir(parents=True)
    for mode, size in (("RGB", (51, 33)), ("L", (20, 90)), ("RGBA", (32, 32)), ("P", (40, 40)), ("1", (64, 64))):
        Image.fromarray(striped(rng, 96)).resize(size).convert(mode).save(folder / f"{mode}.png")
    Image.fromarray(striped(rng, 40)).save(folder / "photo.JPG")
    Image.fromarray(rng.integers(0, 65536, (30, 30), dtype=np.uint16)).save(folder / "sixteen.tif")
    (folder / "torn.png").write_bytes((folder / "RGB.png").read_bytes()[:300])
    (folder / "notes.txt").write_text("no image")
    (folder / "empty.jpg").write_bytes(b"")
    assert predict(trained, tmp_path / "mine", "--out", out, "--maps", "npy", "--batch-size", 3) == 2
    names = {Path(row["path"]).name for row in table(out / "scores.csv")}
    assert names == {"RGB.png", "L.png", "RGBA.png", "P.png", "1.png", "photo.JPG", "sixteen.tif"}
    assert [Path(row["path"]).name for row in table(out / "unreadable.csv")] == ["empty.jpg", "torn.png"]
    error = capsys.readouterr().err
    assert "torn.png" in error
    assert "empty.jpg" in error
    for name in ("RGB_png", "sixteen_tif"):
        assert np.load(out / "maps" / f"{name}.npy").shape == (32, 32)
        with Image.open(out / "overlays" / f"{name}.jpg") as picture:
            assert picture.size == {"RGB_png": (51, 33), "sixteen_tif": (30, 30)}[name]


def test_a_16_bit_map_holds_the_scores_with_their_scale(trained, data_root, tmp_path):
    path = data_root / "mvtec/bottle/test/spot/001.png"
    predict(trained, path, "--out", tmp_path / "out")
    wanted = adbench.load(trained).score(path).maps[0, 0].numpy()
    found = read_map(tmp_path / "out" / "maps" / "001_png.png")
    with Image.open(tmp_path / "out" / "maps" / "001_png.png") as file:
        assert file.mode == "I;16"
    np.testing.assert_allclose(found, wanted, atol=np.ptp(wanted) / 131070 * 1.01)
    write_map(tmp_path / "flat.png", np.full((3, 4), 2.5, np.float32))
    assert (read_map(tmp_path / "flat.png") == 2.5).all()


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_a_broken_pixel_of_a_map_leaves_the_others_as_they_are(broken, tmp_path):
    values = np.array([[broken, 1.0], [2.0, 3.0]], np.float32)
    write_map(tmp_path / "map.png", values)
    np.testing.assert_allclose(read_map(tmp_path / "map.png").ravel()[1:], [1, 2, 3], atol=2 / 131070)
    assert read_map(tmp_path / "map.png")[0, 0] == (1 if broken == -np.inf else 3)  # the coldest, the hottest
    write_map(tmp_path / "map.png", np.full((2, 2), broken, np.float32))
    assert np.isfinite(read_map(tmp_path / "map.png")).all()


def test_two_files_of_one_name_keep_a_map_each(trained, data_root, tmp_path):
    test = data_root / "mvtec/bottle/test"
    predict(trained, test / "good", test / "spot", "--out", tmp_path / "out")
    assert len(list((tmp_path / "out" / "maps").iterdir())) == len(files_of([test]))


def test_a_prediction_replaces_an_earlier_one_in_its_folder_and_nothing_else(trained, data_root, tmp_path):
    test, out = data_root / "mvtec/bottle/test", tmp_path / "out"
    predict(trained, test, "--out", out)
    (out / "scores.partial.csv").write_text("of a call that was stopped")
    (out / "maps" / "mine.png").write_text("not a prediction's")
    predict(trained, test / "good", "--out", out, "--maps", "npy")
    names = {f"{path.stem}_png" for path in files_of([test / "good"])}
    assert {path.stem for path in (out / "overlays").iterdir()} == names
    assert {path.name for path in (out / "maps").iterdir()} == {*(f"{name}.npy" for name in names), "mine.png"}
    assert not (out / "scores.partial.csv").exists()
    predict(trained, test / "good", "--out", out, "--maps", "none")
    assert [path.name for path in (out / "maps").iterdir()] == ["mine.png"]


def test_without_maps_nothing_but_tables_is_written(trained, data_root, tmp_path):
    predict(trained, data_root / "mvtec/bottle/test", "--out", tmp_path / "out", "--maps", "none")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["predict.json", "scores.csv", "unreadable.csv"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("IMAGE", "--false-alarm-rate", "1.5"), "must lie in (0, 1)"),
        (("/nowhere/x.png",), "there is no /nowhere/x.png"),
        ((), "give the images after the run folder"),
        (("EMPTY",), "no file with .png"),
        (("IMAGE", "--device", "nonsense"), "device nonsense cannot be used: this machine has cpu"),
    ],
)
def test_what_a_user_gets_wrong_is_one_message_and_writes_nothing(
    trained, data_root, tmp_path, capsys, arguments, message
):
    (tmp_path / "empty").mkdir()
    places = {"IMAGE": data_root / "mvtec/bottle/test/good/000.png", "EMPTY": tmp_path / "empty"}
    assert predict(trained, *[places.get(a, a) for a in arguments], "--out", tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_no_run_is_refused(tmp_path, capsys):
    assert predict(tmp_path, tmp_path, "--out", tmp_path / "out") == 1
    assert "is no run folder" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["predict", "export", "evaluate", "serve"])
def test_help_imports_no_torch(command):
    line = f"import adbench.{command} as c, sys\ntry: c.main(['--help'])\nfinally: print('torch' in sys.modules)"
    shell = subprocess.run([sys.executable, "-c", line], check=True, capture_output=True, text=True)
    assert shell.stdout.startswith("usage: ") and shell.stdout.endswith("\nFalse\n")


# -- in Python ---------------------------------------------------------------------------------------------------------


def test_every_form_of_an_image_has_one_score(trained, data_root):
    detector = adbench.load(trained)
    path = data_root / "mvtec/bottle/test/spot/000.png"
    array = np.asarray(Image.open(path).convert("RGB"))
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    forms = [path, str(path), Image.open(path), array, array / 255, array.astype(np.float32) / 255, tensor,
             tensor / 255, array[..., 0], tensor[:1], tensor[0], np.dstack([array, array[..., :1]])]  # fmt: skip
    single = [float(detector.score(form).image) for form in forms]
    together = detector.score(forms, batch_size=5)
    assert single == pytest.approx([single[0]] * len(forms), rel=1e-5)
    assert together.image.tolist() == pytest.approx(single, rel=1e-5)
    assert together.maps.shape == (len(forms), 1, 32, 32)
    assert detector.score(np.stack([array, array])).image.shape == (2,)
    assert detector.score(torch.stack([tensor] * 3)).image.shape == (3,)
    assert detector.score([]).image.shape == (0,)


def test_a_detector_that_is_called_says_what_predict_writes(trained, data_root, tmp_path):
    folder, out = data_root / "mvtec/bottle/test", tmp_path / "out"
    assert predict(trained, folder, "--out", out, "--false-alarm-rate", 0.4) == 0
    detector = adbench.load(trained)
    found = detector(folder, false_alarm_rate=0.4)
    rows = table(out / "scores.csv")
    assert found.paths == [row["path"] for row in rows]
    assert found.image.tolist() == pytest.approx([float(row["score"]) for row in rows], rel=1e-6)
    assert found.anomalous.tolist() == [row["decision"] == "anomalous" for row in rows]
    assert set(found.anomalous.tolist()) == {True, False}
    assert found.p_value.tolist() == pytest.approx([float(row["p_value"]) for row in rows], rel=1e-5)
    assert found.threshold == pytest.approx(float(rows[0]["threshold"]), rel=1e-8)
    assert torch.equal(found.maps, detector.score(folder).maps)


def test_folders_and_lists_of_files_and_tensors_stand_beside_each_other(trained, data_root, tmp_path):
    detector, test = adbench.load(trained), data_root / "mvtec/bottle/test"
    files = sorted(test.rglob("*.png"))
    scores = detector.score(files).image
    assert len(files) == 6
    assert torch.equal(detector.score(test).image, scores)
    assert torch.equal(detector.score(str(test)).image, scores)
    image = torch.rand(3, 20, 20)
    mixed = detector([test / "good", image, files[-1]])
    assert mixed.paths == [*map(str, sorted((test / "good").iterdir())), "", str(files[-1])]
    assert mixed.image[-2:].tolist() == pytest.approx(detector.score([image, files[-1]]).image.tolist(), rel=1e-5)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="there is no image in the folder"):
        detector(tmp_path / "empty")
    with pytest.raises(UserError, match="cannot read the image"):
        detector(tmp_path / "absent")


def test_a_score_that_is_no_number_or_the_threshold_itself_is_judged_as_in_predict():
    assert is_anomalous([0.9, 1.0, 1.1, np.nan, np.inf], 1.0).tolist() == [False, False, True, True, True]


def test_a_detectors_repr_names_method_data_size_and_threshold(trained, tmp_path):
    detector = adbench.load(trained)
    highest = max(float(row["score"]) for row in table(trained / "calibration.csv"))
    n = len(table(trained / "calibration.csv"))
    assert repr(detector) == (
        f"Detector(pca on mvtec/bottle, 32x32, threshold {highest:.6g} at a false-alarm rate of {1 / (n + 1):.3g})"
    )
    detector.card["held_out_scores"] = []
    assert repr(detector) == "Detector(pca on mvtec/bottle, 32x32, no threshold)"


def test_an_overlay_is_a_picture_of_the_images_shape_whose_colour_is_at_the_defect(trained, data_root, tmp_path):
    detector = adbench.load(trained)
    test = data_root / "mvtec/bottle/test"
    mask = np.asarray(Image.open(data_root / "mvtec/bottle/ground_truth/spot/000_mask.png")) > 0

    def colour(picture):
        pixels = np.asarray(picture).astype(int)
        return pixels.max(axis=-1) - pixels.min(axis=-1)

    defect = colour(detector.overlay(test / "spot/000.png"))
    assert defect.shape == mask.shape
    assert defect[mask].mean() > 2 * defect[~mask].mean()
    assert colour(detector.overlay(test / "good/000.png")).mean() < defect[mask].mean()
    Image.fromarray(striped(np.random.default_rng(0), 96)).resize((3000, 1500)).save(tmp_path / "large.png")
    assert detector.overlay(str(tmp_path / "large.png")).size == (1024, 512)
    assert detector.overlay(str(tmp_path / "large.png"), longest=100).size == (100, 50)
    with pytest.raises(UserError, match="overlay takes one image, got 3"):
        detector.overlay(test / "good")


def test_a_method_without_maps_has_no_overlay(trained, monkeypatch):
    detector = adbench.load(trained)
    original = detector.engine.score
    monkeypatch.setattr(detector.engine, "score", lambda rows: original(rows)._replace(maps=None))
    with pytest.raises(UserError, match="pca has no anomaly maps"):
        detector.overlay(np.zeros((9, 9, 3), np.uint8))


def test_a_map_like_those_of_held_out_normal_images_stays_cold():
    normal = map_range(np.linspace(0, 10, 1001, dtype=np.float32))
    assert normal == pytest.approx([5.0, 9.98])
    quiet = np.full((4, 4), 5.0, np.float32)
    assert map_scale([quiet], normal)(quiet).max() == 0
    loud = np.full((4, 4), 50.0, np.float32)
    assert map_scale([loud], normal).vmax == 50
    assert map_range(np.zeros(0, np.float32)) is None


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.full((8, 8, 3), np.nan), "float images lie in"),
        (np.full((8, 8, 3), 255.0), "float images lie in"),
        (np.zeros((8, 8, 3), np.int64), "uint8 or float"),
        (np.zeros((8, 8, 7), np.uint8), "got (8, 8, 7)"),
        (torch.zeros(8, 8, 3), "got (8, 8, 3)"),
        ([3], "expected a path"),
        (7, "expected images"),
    ],
)
def test_what_is_no_image_is_refused(trained, image, message):
    with pytest.raises(UserError) as caught:
        adbench.load(trained).score(image)
    assert message in str(caught.value)


def test_the_file_latest_stands_for_the_run_that_it_names(trained, tmp_path):
    latest = tmp_path / "latest"
    latest.write_text(f"{trained}\n")
    image = torch.rand(1, 3, 40, 40)
    assert torch.equal(adbench.load(latest).score(image).image, adbench.load(trained).score(image).image)


def test_a_prediction_without_one_readable_file_fails_and_says_where_the_reasons_are(trained, tmp_path, capsys):
    (tmp_path / "torn.png").write_bytes(b"no picture")
    assert predict(trained, tmp_path / "torn.png", "--out", tmp_path / "out") == 1
    assert "none of the 1 files could be read" in capsys.readouterr().err
    assert len(table(tmp_path / "out" / "unreadable.csv")) == 1


def test_a_run_of_another_version_says_which_arguments_differ(trained):
    path = trained / ".hydra/config.yaml"
    cfg = yaml.safe_load(path.read_text())
    del cfg["method"]["components"]
    cfg["method"]["rank"] = 3
    path.write_text(yaml.safe_dump(cfg))
    with pytest.raises(UserError, match=r"PCAResidual.*\(unknown now: rank\)"):
        adbench.load(trained)
    cfg["method"]["_target_"] = "adbench.methods.base.SingleObjective"
    path.write_text(yaml.safe_dump(cfg))
    with pytest.raises(UserError, match=r"SingleObjective.*\(now needed: optimizer; unknown now: .*rank\)"):
        adbench.load(trained)


def test_the_doctest_of_load_runs(finished, tmp_path, monkeypatch):
    folder = finished("method=pca", "data=digits")
    monkeypatch.chdir(tmp_path)
    Image.fromarray(striped(np.random.default_rng(0), 50)).save("part.png")
    examples = doctest.DocTestFinder().find(adbench.load, globs={"adbench": adbench, "RUN": folder})
    results = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(examples[0])
    assert results.attempted >= 6
    assert results.failed == 0


def test_the_session_of_the_guide_to_python_runs(finished, tmp_path, monkeypatch):
    text = (Path(__file__).parent.parent / "docs" / "guide" / "python.md").read_text(encoding="utf-8")
    blocks = [b for b in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL) if b.startswith(">>>")]
    assert blocks
    folder = finished("method=pca", "data=digits")
    monkeypatch.chdir(tmp_path)
    Image.fromarray(striped(np.random.default_rng(0), 50)).save("part.png")
    for block in blocks:
        test = doctest.DocTestParser().get_doctest(block, {"RUN": folder}, "python.md", None, 0)
        assert doctest.DocTestRunner().run(test).failed == 0


# -- evaluate ----------------------------------------------------------------------------------------------------------


def test_evaluating_a_run_on_its_own_data_gives_its_own_scores(trained):
    from adbench.evaluate import main as evaluate

    assert evaluate([str(trained)]) == 0
    folder = trained / "evaluations" / "mvtec" / "bottle"
    assert (folder / "scores.csv").read_bytes() == (trained / "scores.csv").read_bytes()
    assert metrics_of(folder)["metrics"] == pytest.approx(metrics_of(trained)["metrics"], rel=1e-6, nan_ok=True)
    assert metrics_of(folder)["status"] == "evaluation"


def test_evaluating_on_other_data_keeps_weights_threshold_and_size_and_touches_nothing_of_the_run(trained, data_root):
    from adbench.evaluate import main as evaluate

    before = {p: p.read_bytes() for p in trained.rglob("*") if p.is_file()}
    assert evaluate([str(trained), "data=mvtec/screw", f"data_root={data_root}"]) == 0
    assert {p: p.read_bytes() for p in before} == before
    found = metrics_of(trained / "evaluations" / "mvtec" / "screw")
    assert found["data"] == "mvtec/screw"
    assert found["trained_on"] == "mvtec/bottle"
    assert found["threshold"]["value"] == metrics_of(trained)["threshold"]["value"]
    paths = {row["path"] for row in table(trained / "evaluations" / "mvtec" / "screw" / "scores.csv")}
    assert "test/spot/000.png" in paths
    detector = adbench.load(trained)
    score = float(detector.score(data_root / "mvtec/screw/test/spot/000.png").image)
    rows = table(trained / "evaluations" / "mvtec" / "screw" / "scores.csv")
    assert float(next(r["score"] for r in rows if r["path"] == "test/spot/000.png")) == pytest.approx(score, rel=1e-5)


@pytest.mark.parametrize(
    ("override", "message"),
    [("method=cbigan", "changes the data alone"), ("data=nothing", "does not exist"), ("data=odds/cardio", "of kind"),
     ("data=folder", "give data.root=DIR"),
     ("data.source.root=/nowhere", "expected normal training images in /nowhere")],
)  # fmt: skip
def test_an_evaluation_that_makes_no_sense_is_refused(trained, override, message, capsys):
    from adbench.evaluate import main as evaluate

    assert evaluate([str(trained), override]) == 1
    assert message in capsys.readouterr().err
    assert not (trained / "evaluations").exists()


def test_a_model_or_a_run_that_is_not_there_is_told_as_that(tmp_path, capsys):
    (tmp_path / "note.txt").write_text("x")
    for line, message in (
        (("a.png", "--model", tmp_path / "nope.onnx"), "there is no"),
        (("a.png", "--model", tmp_path / "nope.safetensors"), "there is no"),
        ((tmp_path / "nope", "a.png"), "there is no"),
        ((tmp_path / "note.txt", "a.png"), "note.txt is a file; give the folder of a finished run"),
    ):
        assert predict(*line, "--out", tmp_path / "out") == 1
        said = capsys.readouterr().err
        assert message in said
        assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


# -- no score that was computed is lost ------------------------------------------------------------------------------


def test_maps_of_long_names_and_deep_trees_are_written_under_shorter_names(trained, data_root, tmp_path):
    image = data_root / "mvtec/bottle/test/good/000.png"
    deep = tmp_path / "images" / Path(*["a-folder-with-a-long-name"] * 12)
    deep.mkdir(parents=True)
    long = tmp_path / "images" / f"{'x' * 250}.png"
    names = [long, tmp_path / "images" / f"{'x' * 249}y.png", deep / "1.png", tmp_path / "images" / f"{'ü' * 120}.png"]
    for path in names:
        path.write_bytes(image.read_bytes())
    assert predict(trained, tmp_path / "images", "--out", tmp_path / "out", "--false-alarm-rate", 0.4) == 0
    assert {row["path"] for row in table(tmp_path / "out/scores.csv")} == {str(path) for path in names}
    for folder in ("maps", "overlays"):
        assert len(list((tmp_path / "out" / folder).iterdir())) == len(names)


def test_names_that_differ_in_case_alone_or_that_a_number_would_repeat_keep_a_map_each():
    paths = ["f/a.png", "f/A.png", "f/a_png_2", "f/sub/a.png", "f/sub_a.png", "f/\u00e9", "f/e\u0301"]
    names = unique_names([Path(path) for path in paths]).values()
    assert len({unicodedata.normalize("NFC", name).casefold() for name in names}) == len(paths)


def test_a_name_that_is_no_text_keeps_its_bytes_in_the_scores(trained, data_root, tmp_path):
    path = os.fsencode(tmp_path) + b"/caf\xe9.png"
    Path(os.fsdecode(path)).write_bytes((data_root / "mvtec/bottle/test/good/000.png").read_bytes())
    assert predict(trained, os.fsdecode(path), "--out", tmp_path / "out", "--false-alarm-rate", 0.4) == 0
    assert path in (tmp_path / "out/scores.csv").read_bytes()


def test_maps_that_cannot_be_written_cost_no_score_and_are_counted_and_named(trained, data_root, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "overlays").write_text("a file is in the way")
    images = data_root / "mvtec/bottle/test"
    assert predict(trained, images, "--out", out, "--false-alarm-rate", 0.4, "--batch-size", 4) == 2
    assert len(table(out / "scores.csv")) == 6
    assert json.loads((out / "predict.json").read_text())["maps_not_written"] == 6
    error = capsys.readouterr().err
    assert error.count("its map could not be written") == 6 and "000.png" in error


def test_an_output_folder_that_cannot_be_written_is_refused_before_anything_is_scored(
    trained, data_root, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("adbench.detection.detector.MethodEngine.score", lambda *_: pytest.fail("an image was scored"))
    (tmp_path / "file").write_text("in the way")
    for out in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / ("x" * 300)):
        assert predict(trained, data_root / "mvtec/bottle/test", "--out", out) == 1
        assert "cannot write to --out" in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_refused_before_anything_is_exported(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("adbench.detection.graph.save_graph", lambda *_: pytest.fail("a graph was made"))
    (tmp_path / "file").write_text("in the way")
    assert export.main([str(trained), "--out", str(tmp_path / "file" / "model.onnx")]) == 1
    assert f"cannot write to --out {tmp_path / 'file'}" in capsys.readouterr().err


def test_scores_that_cannot_be_written_are_printed(trained, data_root, tmp_path, capsys):
    out = tmp_path / "out"
    (out / "scores.csv" / "a folder is in the way").mkdir(parents=True)
    line = ("--out", out, "--false-alarm-rate", 0.4, "--maps", "none")
    assert predict(trained, data_root / "mvtec/bottle/test", *line) == 1
    printed = capsys.readouterr()
    assert printed.out.count(".png,") == 6 and "the scores were printed instead" in printed.err


def test_scores_before_an_error_are_kept_apart_from_whole_ones(trained, data_root, tmp_path, monkeypatch):
    from adbench.detection.detector import MethodEngine

    original, calls = MethodEngine.score, []

    def score(self, rows):
        calls.append(1)
        if len(calls) > 2:
            raise MemoryError
        return original(self, rows)

    monkeypatch.setattr(MethodEngine, "score", score)
    with pytest.raises(MemoryError):
        predict(trained, data_root / "mvtec/bottle/test", "--out", tmp_path / "out", "--batch-size", 2,
                "--false-alarm-rate", 0.4)  # fmt: skip
    assert len(table(tmp_path / "out/scores.partial.csv")) == 4
    assert not (tmp_path / "out/scores.csv").exists()
