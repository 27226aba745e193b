"""One image is one image: in a run, in predict, in Python and in an exported graph, whatever file it comes in."""

import csv
import io
import warnings

import numpy as np
import pytest
from conftest import metrics_of, striped
from pictures import CARRIERS, GRID, colour, in_mode, with_chunk
from PIL import Image, ImageOps

import adbench
from adbench.data.cache import cached, resized
from adbench.data.folder import Folder

PCA = ("method=pca", "data=mvtec/bottle", "data.image_size=32")


@pytest.fixture
def turned(tmp_path):
    """Files of every carrier and mode in one orientation each, and what Pillow's exif_transpose makes of them."""
    folder, wanted = tmp_path / "turned", {}
    folder.mkdir()
    picture = np.kron(colour(), np.ones((5, 5, 1), np.uint8))
    for number, (carrier, mode) in enumerate(GRID):
        save, suffix, _ = CARRIERS[carrier]
        path = folder / f"{number:02}{suffix}"
        save(path, in_mode(picture, mode), 2 + number % 7)
        with Image.open(io.BytesIO(path.read_bytes())) as file:
            image = ImageOps.exif_transpose(file)
        if mode in ("I;16", "F"):
            values = np.asarray(image)
            grey = np.rint(values / 257 if mode == "I;16" else values * 255).astype(np.uint8)
            wanted[path] = np.repeat(grey[..., None], 3, axis=-1)
        else:
            wanted[path] = np.asarray((image.convert("RGBA") if mode == "P" else image).convert("RGB"))
    return folder, wanted


def test_every_way_to_an_image_sees_it_as_exif_transpose_does(finished, turned, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from adbench.export import main as export
    from adbench.predict import main as predict

    folder, wanted = turned
    run = finished(*PCA)
    assert export([str(run), "--out", str(tmp_path / "m.onnx")]) == 0
    detector, graph = adbench.load(run), adbench.load(tmp_path / "m.onnx")
    paths = list(wanted)
    oracle = detector.score(list(wanted.values())).image.tolist()
    assert detector.score(paths).image.tolist() == oracle
    assert detector.score([Image.open(path) for path in paths]).image.tolist() == oracle
    assert graph.score(paths).image.tolist() == graph.score(list(wanted.values())).image.tolist()
    assert graph.score(paths).image.tolist() == pytest.approx(oracle, rel=1e-4)
    assert predict([str(run), str(folder), "--out", str(tmp_path / "out"), "--maps", "none"]) == 0
    with (tmp_path / "out" / "scores.csv").open() as file:
        scored = {row["path"]: float(row["score"]) for row in csv.DictReader(file)}
    assert scored == pytest.approx(dict(zip(map(str, paths), oracle, strict=True)), rel=1e-5)

    source = Folder(folder, "*")
    images, _ = cached(source, (32, 32), tmp_path / "cache")
    for row, name in enumerate(source.records.path):
        seen = resized(wanted[folder / str(name)][None], (32, 32))
        np.testing.assert_array_equal(images[np.array([row])], seen, err_msg=str(name))


def test_broken_metadata_stop_neither_a_run_nor_predict_and_are_named(run, data_root, tmp_path, capsys, caplog):
    import shutil

    from adbench.predict import main as predict

    root = shutil.copytree(data_root / "mvtec/bottle", tmp_path / "mine")
    path = root / "test/good/001.png"
    path.write_bytes(with_chunk(path.read_bytes(), b"eXIf", b"II*\0"))
    mask = root / "ground_truth/spot/001_mask.png"
    mask.write_bytes(with_chunk(mask.read_bytes(), b"eXIf", b"garbage"))
    code, folder = run("method=pca", "data=folder", "data.name=mine", f"data.root={root}", "data.image_size=32")
    assert code == 0
    report = metrics_of(folder)["data_report"]
    assert report["broken_metadata"]["names"] == ["ground_truth/spot/001_mask.png", "test/good/001.png"]
    assert "2 files with broken metadata" in (folder / "run.log").read_text()
    assert predict([str(folder), str(path), "--out", str(tmp_path / "out"), "--maps", "none"]) == 0
    assert "001.png is one of the files with broken metadata" in capsys.readouterr().err
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        adbench.load(folder).score(path)
    assert any("001.png" in str(warning.message) for warning in caught)


def test_bits_and_the_limit_of_pixels_of_a_run_hold_in_predict_python_and_graph(run, data_root, tmp_path):
    pytest.importorskip("onnxscript")
    from adbench.export import main as export
    from adbench.predict import main as predict

    root = tmp_path / "deep"
    for path in (data_root / "mvtec/bottle").rglob("*.png"):
        target = root / path.relative_to(data_root / "mvtec/bottle")
        target.parent.mkdir(parents=True, exist_ok=True)
        values = np.asarray(Image.open(path).convert("L")).astype(np.uint16)
        Image.fromarray(values * 16 if "ground_truth" not in path.parts else values).save(target)
    options = ("data=folder", "data.name=deep", f"data.root={root}", "data.bits=12", "data.max_pixels=1600")
    code, folder = run("method=pca", *options, "data.image_size=32")
    assert code == 0
    assert export([str(folder), "--out", str(tmp_path / "m.onnx")]) == 0
    detector, graph = adbench.load(folder), adbench.load(tmp_path / "m.onnx")
    path = root / "test/spot/001.png"
    with (folder / "scores.csv").open() as file:
        wanted = next(float(row["score"]) for row in csv.DictReader(file) if row["path"] == "test/spot/001.png")
    values = np.asarray(Image.open(path))
    grey = np.rint(values / (4095 / 255)).astype(np.uint8)
    for image in (path, Image.open(path), grey):
        assert float(detector.score(image).image) == pytest.approx(wanted, rel=1e-5)
        assert float(graph.score(image).image) == pytest.approx(wanted, rel=1e-4)
    Image.fromarray(striped(np.random.default_rng(0), 41)).save(tmp_path / "large.png")
    line = [str(folder), str(tmp_path / "large.png"), "--out", str(tmp_path / "out"), "--maps", "none"]
    assert predict(line) == 1
    assert predict([*line, "--max-pixels", "1681"]) == 0


def test_a_run_goes_on_without_unreadable_files_where_it_is_told_to(run, data_root, tmp_path, capfd):
    import shutil

    root = shutil.copytree(data_root / "mvtec/bottle", tmp_path / "mine")
    (root / "train/good/002.png").write_bytes(b"torn")
    (root / "test/good/000.png").write_bytes(b"torn")
    options = ("method=pca", "data=folder", "data.name=mine", f"data.root={root}", "data.image_size=32")
    code, _ = run(*options)
    assert code == 1
    error = "".join(capfd.readouterr())
    assert "2 files cannot be used" in error
    assert "train/good/002.png" in error
    assert "test/good/000.png" in error
    code, folder = run(*options, "data.unreadable=skip", "overwrite=true")
    assert code == 0
    assert metrics_of(folder)["data_report"]["unreadable"]["count"] == 2
    assert metrics_of(folder)["counts"]["test_normal"] == 2
    assert "2 files that cannot be read, left out" in (folder / "run.log").read_text()


def test_predict_searches_no_hidden_folder_and_linked_ones_once(finished, data_root, tmp_path):
    from adbench.predict import main as predict

    inside = tmp_path / "mine"
    for name in ("a", ".hidden", "@eaDir", "__MACOSX", "a/.ipynb_checkpoints"):
        (inside / name).mkdir(parents=True)
        Image.fromarray(striped(np.random.default_rng(0), 40)).save(inside / name / "0.png")
    (inside / "linked").symlink_to(data_root / "mvtec/bottle/test/good")
    (inside / "a" / "loop").symlink_to(inside)
    out = tmp_path / "out"
    assert predict([str(finished(*PCA)), str(inside), "--out", str(out), "--maps", "none"]) == 0
    with (out / "scores.csv").open() as file:
        found = sorted(row["path"][len(str(inside)) + 1 :] for row in csv.DictReader(file))
    assert found == ["a/0.png", "linked/000.png", "linked/001.png", "linked/002.png"]
