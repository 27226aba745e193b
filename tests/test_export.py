"""Every method as a graph: what onnxruntime computes is what the method computes."""

import json

import numpy as np
import pytest
import torch
from conftest import metrics_of
from test_contract import make, variants

import adbench
from adbench.data.cache import resized
from adbench.data.images import center_crop
from adbench.detection import graph
from adbench.detection.graph import save_graph
from adbench.evaluation.thresholds import held_out_threshold
from adbench.export import main
from adbench.types import UserError

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

# What else scores in another way than the method or preset it belongs to.
OTHERS = (
    "autoencoder/ssim", "cbigan/released2021", "deep_svdd/rec", "esad/vanilla", "igd/released", "ocsvm/hybrid",
    "pwae/small_latent", "ssae/objective4_small",
)  # fmt: skip
TRACED = {"igd/small": 64}  # a side at which the method has all its parts


def session(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def fitted(name, tmp_path):
    """A method with its statistics and with weights that no training has seen."""
    side = [f"data.image_size={TRACED[name]}"] if name in TRACED else []
    method, datamodule = make(name, tmp_path, *side)
    method.eval()
    with torch.no_grad():
        method.prepare(datamodule.training_batches("cpu"))
        method.calibrate(datamodule.holdout_batches("cpu"))
    return method, {"method": name, "input": {"size": list(datamodule.size), "features": None}}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*variants(), *OTHERS])
def test_onnxruntime_scores_images_of_any_size_and_number_as_the_method_does(name, tmp_path):
    method, card = fitted(name, tmp_path)
    save_graph(method, card, "onnx", tmp_path / "m.onnx")
    running = session(tmp_path / "m.onnx")
    rng = np.random.default_rng(0)
    for rows, height, width in ((1, 50, 37), (3, 20, 71)):
        image = rng.integers(0, 256, (rows, height, width, 3), dtype=np.uint8)
        found = running.run(None, {"image": np.ascontiguousarray(image.transpose(0, 3, 1, 2))})
        seen = torch.from_numpy(resized(image, tuple(card["input"]["size"]))) / 255.0
        with torch.no_grad():
            wanted = method.score(seen)
        assert [output.name for output in running.get_outputs()] == ["score", "map"][: len(found)]
        np.testing.assert_allclose(found[0], wanted.image.numpy(), rtol=1e-4, atol=1e-7)
        assert (wanted.maps is None) == (len(found) == 1)
        if wanted.maps is not None:
            np.testing.assert_allclose(found[1], wanted.maps.numpy(), rtol=1e-4, atol=1e-5 * float(wanted.maps.max()))


TABLES = ("esad", "autoencoder", "vae", "kde", "ocsvm", "isolation_forest", "deep_sad", "nearest_neighbour")


@pytest.mark.parametrize("name", TABLES)
def test_onnxruntime_scores_rows_of_a_table_as_the_method_does(name, tmp_path):
    from hydra import compose, initialize_config_dir

    from adbench.experiment.build import build_method
    from adbench.experiment.groups import conf_dir
    from adbench.types import Batch

    overrides = [f"method={name}", "data=tabular", "data.name=t", "data.file=t", "data.features=6"]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        method = build_method(compose("config", overrides=overrides)).eval()
    rows = torch.randn(60, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    nothing = torch.zeros(60, dtype=torch.long)
    with torch.no_grad():
        method.prepare([Batch(rows, nothing, nothing, nothing, nothing)])
    card = {"method": name, "input": {"size": None, "features": 6}}
    save_graph(method, card, "onnx", tmp_path / "m.onnx")
    found = session(tmp_path / "m.onnx").run(None, {"image": rows[:7].numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(found[0], method.score(rows[:7]).image.numpy(), rtol=1e-4, atol=1e-7)


PCA = ("method=pca", "data=mvtec/bottle", "data.image_size=32")


def predicted(out):
    import csv

    with (out / "scores.csv").open() as file:
        return {row["path"]: (float(row["score"]), row["decision"], row["p_value"]) for row in csv.DictReader(file)}


def test_a_graph_scores_a_folder_without_the_run_and_with_its_threshold(finished, data_root, tmp_path, monkeypatch):
    import shutil

    from adbench.predict import main as predict

    folder, images = finished(*PCA), str(data_root / "mvtec/bottle/test")
    assert predict([str(folder), images, "--out", str(tmp_path / "a"), "--false-alarm-rate", "0.4"]) == 0
    assert main([str(folder), "--out", str(tmp_path / "m.onnx")]) == 0
    card = json.loads((tmp_path / "m.json").read_text())
    for key in ("method", "data", "metrics", "threshold", "input", "versions", "held_out_scores"):
        assert card[key], key
    assert card["metrics"] == metrics_of(folder)["metrics"]
    assert card["parity"] < 1e-4
    shutil.rmtree(folder)
    (tmp_path / "m.json").unlink()
    line = [images, "--model", str(tmp_path / "m.onnx"), "--out", str(tmp_path / "b"), "--false-alarm-rate", "0.4"]
    assert predict(line) == 0
    wanted, found = predicted(tmp_path / "a"), predicted(tmp_path / "b")
    assert found.keys() == wanted.keys()
    for path, (score, decision, chance) in wanted.items():
        assert found[path][0] == pytest.approx(score, rel=1e-4)
        assert found[path][1:] == (decision, chance)
    assert len(list((tmp_path / "b" / "maps").iterdir())) == len(wanted)
    wanted = held_out_threshold(card["held_out_scores"], 0.6)["value"]
    assert adbench.load(tmp_path / "m.onnx").threshold(0.4)["value"] == wanted


def test_a_torch_export_program_takes_any_size_and_number(finished, tmp_path):
    folder = finished(*PCA)
    assert main([str(folder), "--format", "torch-export", "--out", str(tmp_path / "m.pt2")]) == 0
    program = torch.export.load(tmp_path / "m.pt2").module()
    image = torch.randint(0, 256, (3, 3, 41, 77), dtype=torch.uint8)
    score, maps = program(image)
    wanted = adbench.load(folder).score(image)
    torch.testing.assert_close(score, wanted.image, rtol=1e-4, atol=0)
    torch.testing.assert_close(maps, wanted.maps, rtol=1e-4, atol=1e-6)


def test_a_fixed_input_size_is_kept_and_other_sizes_are_refused(finished, data_root, tmp_path, capsys):
    from adbench.predict import main as predict

    folder = finished(*PCA)
    assert main([str(folder), "--input-size", "40x40", "--out", str(tmp_path / "m.onnx")]) == 0
    assert session(tmp_path / "m.onnx").get_inputs()[0].shape[1:] == [3, 40, 40]
    good = data_root / "mvtec/bottle/test/good"
    assert predict([str(good), "--model", str(tmp_path / "m.onnx"), "--out", str(tmp_path / "a")]) == 0
    odd = tmp_path / "odd.png"
    from PIL import Image

    Image.new("RGB", (30, 50)).save(odd)
    assert predict([str(odd), "--model", str(tmp_path / "m.onnx"), "--out", str(tmp_path / "b")]) == 1
    assert "takes images of 40x40" in capsys.readouterr().err
    assert main([str(folder), "--input-size", "forty"]) == 1


def test_a_central_crop_before_resizing_is_part_of_the_graph(tmp_path):
    method, card = fitted("pca", tmp_path)
    card["input"]["crop"] = 40
    save_graph(method, card, "onnx", tmp_path / "m.onnx")
    running = session(tmp_path / "m.onnx")
    for height, width in ((61, 50), (30, 51), (40, 17)):
        image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
        seen = resized(center_crop(image, 40)[None], tuple(card["input"]["size"]))
        with torch.no_grad():
            wanted = method.score(torch.from_numpy(seen) / 255.0)
        found = running.run(None, {"image": np.ascontiguousarray(image.transpose(2, 0, 1))[None]})
        np.testing.assert_allclose(found[0], wanted.image.numpy(), rtol=1e-4)


def test_what_cannot_be_exported_says_which_operation_and_why(tmp_path):
    method, card = fitted("brightness", tmp_path)
    original = method.score

    def score(image):
        scores = original(image)
        return scores._replace(image=scores.image + torch.linalg.eigvals(image[:, 0]).real.sum(1))

    method.score = score
    with pytest.raises(UserError, match="linalg_eig"):
        save_graph(method, card, "onnx", tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


def test_a_method_for_a_constant_number_of_images_is_refused_in_plain_words(tmp_path):
    method, card = fitted("brightness", tmp_path)
    original = method.score

    def score(image):
        rows = [original(row[None]) for row in image.unbind()]
        return rows[0]._replace(image=torch.cat([row.image for row in rows]))

    method.score = score
    with pytest.raises(UserError) as refusal:
        save_graph(method, card, "torch-export", tmp_path / "m.pt2")
    assert str(refusal.value) == (
        "brightness cannot be exported: its code takes the number of the images for a constant; --format safetensors "
        "writes what adbench.load and predict --model take"
    )


def test_a_graph_that_gives_other_scores_leaves_the_file_before_it(tmp_path, monkeypatch):
    method, card = fitted("brightness", tmp_path)
    monkeypatch.setattr(graph, "_run_onnx", lambda content, image: [np.ones(len(image), np.float32)])
    path = tmp_path / "m.onnx"
    for before in (None, b"an older graph"):
        if before:
            path.write_bytes(before)
        with pytest.raises(UserError, match="differ by"):
            save_graph(method, card, "onnx", path)
        assert (path.read_bytes() if path.exists() else None) == before


def test_a_file_that_is_no_graph_of_ours_is_refused(tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be loaded"):
        adbench.load(tmp_path / "x.onnx")
