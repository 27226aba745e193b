"""Finished runs side by side: the same images in every column, nothing trained, one message where they do not fit."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from adbench.evaluation.codes import Codes, load_codes, save_codes
from adbench.studies import figures

TINY = ("data=mvtec/bottle", "data.image_size=32", "data.batch_size=4")
AE = ("method=autoencoder", *TINY, "method.width=2", "method.latent=4")
VAE = ("method=vae", *TINY, "method.width=2", "method.latent=4")


@pytest.fixture
def runs(_finished):
    """Two finished runs on one data set. Read only: all tests share them."""
    return _finished(*AE), _finished(*VAE)


@pytest.fixture
def drawn(tmp_path, capsys):
    """`drawn(kind, *arguments)` -> (exit code, the picture's path, what was printed)."""

    def call(*arguments, out="figure.png"):
        code = figures.main([*map(str, arguments), "--out", str(tmp_path / out)])
        said = capsys.readouterr()
        return code, tmp_path / out, said.out + said.err

    return call


@pytest.mark.parametrize("out", ["figure.png", "below/figure.pdf", "figure.svg"])
def test_a_picture_of_reconstructions_is_written_whole_and_its_path_told(runs, drawn, out):
    code, path, said = drawn("reconstructions", *runs, out=out)
    assert code == 0
    assert said.strip().endswith(str(path))
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    if path.suffix == ".png":
        assert Image.open(path).width > Image.open(path).height / 2


def test_every_column_shows_the_same_rows_and_each_run_its_own_reconstruction(runs, monkeypatch):
    from adbench.experiment.build import build_datamodule, load_method
    from adbench.experiment.folder import RunFolder

    seen = {}
    monkeypatch.setattr(figures, "draw_reconstructions", lambda *parts: seen.update(parts=parts))
    found = [figures.finished(run) for run in runs]
    figures.reconstructions(found, rows="9,12")
    titles, kinds, columns = seen["parts"]
    assert titles == ["autoencoder", "vae"]
    datamodule = build_datamodule(RunFolder(runs[0]).config(), "unsupervised")
    datamodule.setup()
    assert kinds == datamodule.records.defect[[9, 12]].tolist()
    (first, second), methods = columns, [load_method(run) for run in runs]
    assert torch.equal(first[0], second[0])
    assert not torch.equal(first[1], second[1])
    for (image, x_hat, _), method in zip(columns, methods, strict=True):
        with torch.no_grad():
            assert torch.equal(method.reconstruct(image), x_hat)
    every = list(datamodule.test_dataloader())
    rows = torch.cat([batch.index for batch in every]).tolist()
    bytes_of = torch.cat([batch.image for batch in every])
    for row, image in zip((9, 12), first[0], strict=True):
        assert torch.equal((image * 255).round().byte(), bytes_of[rows.index(row)])


def test_images_are_chosen_by_row_alone_or_by_defect_kind(runs, monkeypatch):
    kinds = []
    monkeypatch.setattr(figures, "draw_reconstructions", lambda _, found, __: kinds.append(found))
    found = [figures.finished(run) for run in runs]
    figures.reconstructions(found, number=2)
    figures.reconstructions(found, per_defect=1)
    assert len(kinds[0]) == 2
    assert sorted(kinds[1]) == ["good", "spot"]


def test_the_difference_is_the_absolute_one_on_one_scale_for_all_methods():
    image = torch.zeros(1, 3, 8, 8)
    columns = [(image, torch.full_like(image, value), None) for value in (0.25, 0.75)]
    grid = figures.draw_reconstructions(["a", "b"], ["good"], columns).axes
    pictures = [axes.images[0] for axes in grid[:5]]
    assert pictures[2].get_array().max() == pytest.approx(0.25)
    assert pictures[4].get_array().max() == pytest.approx(0.75)
    assert pictures[2].norm is pictures[4].norm


def test_codes_are_those_of_the_normal_images_that_all_runs_have(runs, tmp_path, monkeypatch, drawn):
    seen, folders = {}, []
    for k, run in enumerate(runs):
        folder = tmp_path / f"run{k}"
        (folder / "figures").mkdir(parents=True)
        (folder / ".hydra").mkdir()
        for name in ("metrics.json", ".hydra/config.yaml"):
            (folder / name).write_bytes((run / name).read_bytes())
        rows = np.arange(k, 8 + k)
        codes = np.random.default_rng(k).normal(size=(8, 1, 3)).astype(np.float32)
        save_codes(folder / "figures" / "codes.npz", Codes(codes, np.array(["good"] * 7 + ["spot"]), rows))
        folders.append(folder)
    code, path, _ = drawn("codes", *folders)
    assert (code, path.exists()) == (0, True)
    monkeypatch.setattr("adbench.evaluation.codes.draw_density", lambda found: seen.update(found))
    figures.codes([figures.finished(folder) for folder in folders])
    kept = [load_codes(folder / "figures" / "codes.npz") for folder in folders]
    np.testing.assert_array_equal(seen["autoencoder"], kept[0].codes[1:7])  # rows 1 .. 6
    np.testing.assert_array_equal(seen["vae"], kept[1].codes[:6])


def test_an_autoencoders_run_keeps_its_codes(runs):
    for run in runs:
        kept = load_codes(run / "figures" / "codes.npz")
        assert kept.codes.shape[1:] == (1, 4)
        assert (run / "figures" / "codes_interpolation.png").exists()


def test_the_commands_of_the_guide_draw_every_kind(runs, tmp_path, monkeypatch):
    page = (Path(__file__).parents[1] / "docs" / "guide" / "report.md").read_text(encoding="utf-8")
    lines = re.findall(r"^python -m adbench\.figures (.*?)  ", page, re.M)
    assert {line.split()[0] for line in lines} == set(figures.KINDS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("adbench.evaluation.codes.draw_density", lambda found: Figure())  # of more images than these
    monkeypatch.setattr("adbench.studies.figures.FEWEST", 1)
    for line in lines:
        kind, *rest = line.replace("RUN RUN", " ".join(map(str, runs))).split()
        assert figures.main([kind, *rest]) == 0, line
        assert (tmp_path / rest[-1]).exists()


def test_moments_of_different_data_stand_side_by_side(runs, _finished, drawn):
    other = _finished("method=pca", "data=mvtec/carpet", "data.image_size=32")
    code, path, _ = drawn("moments", runs[0], other)
    assert (code, path.exists()) == (0, True)


def test_runs_are_told_apart_by_what_they_differ_in(runs):
    first = figures.finished(runs[0])
    other = first._replace(record={**first.record, "changed": {"method.alpha": 0.5}})
    later = first._replace(record={**first.record, "seed": 3})
    assert figures.names([first]) == ["autoencoder"]
    assert len(set(figures.names([first, other]))) == 2
    assert figures.names([first, other])[1].endswith("alpha=0.5")
    assert figures.names([first, later]) == ["autoencoder seed 0", "autoencoder seed 3"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["reconstructions", "RUN", "CARPET"], "was trained on mvtec/bottle and"),
        (["codes", "RUN", "CARPET"], "give runs on the same data"),
        (["reconstructions", "RUN", "RUN"], "is given twice"),
        (["reconstructions", "RUN", "nowhere"], "there is no nowhere"),
        (["reconstructions", "UNFINISHED"], "is not finished (status interrupted)"),
        (["reconstructions", "TORN"], "metrics.json cannot be read"),
        (["reconstructions", "RUN", "--rows", "3,x"], "--rows takes row numbers"),
        (["reconstructions", "RUN", "--rows", "0"], "row 0 is not a test row"),
        (["reconstructions", "RUN", "--number", "0"], "--number must be at least 1"),
        (["reconstructions", "RUN", "--per-defect", "-1"], "--per-defect must be at least 1"),
        (["reconstructions", "BRIGHTNESS"], "brightness reconstructs no images"),
        (["codes", "BRIGHTNESS"], "has no codes"),
        (["codes", "RUN", "--number", "3"], "leave it out of codes"),
    ],
)  # fmt: skip
def test_what_does_not_fit_ends_in_one_message(runs, _finished, tmp_path, drawn, arguments, message):
    torn, unfinished = tmp_path / "torn", tmp_path / "unfinished"
    for folder, text in ((torn, "{"), (unfinished, json.dumps({"status": "interrupted"}))):
        (folder / ".hydra").mkdir(parents=True)
        (folder / ".hydra" / "config.yaml").write_bytes((runs[0] / ".hydra" / "config.yaml").read_bytes())
        (folder / "metrics.json").write_text(text)
    places = {"RUN": lambda: runs[0], "TORN": lambda: torn, "UNFINISHED": lambda: unfinished}
    places["CARPET"] = lambda: _finished("method=pca", "data=mvtec/carpet", "data.image_size=32")
    places["BRIGHTNESS"] = lambda: _finished("method=brightness", *TINY)
    code, path, said = drawn(*(places[word]() if word in places else word for word in arguments))
    assert code == 1
    assert said.count("error: ") == 1
    assert message in said
    assert not path.exists()


@pytest.mark.parametrize("out", ["figure.jpg", "figure", "."])
def test_a_file_that_is_no_picture_is_refused_before_any_work(runs, drawn, out):
    code, _, said = drawn("moments", runs[0], out=out)
    assert code == 1
    assert "--out takes a file that ends in .png, .pdf, .svg" in said


def test_the_same_name_with_other_images_is_other_data(runs):
    first, second = (figures.finished(run) for run in runs)
    other = second._replace(record={**second.record, "data_fingerprint": "another"})
    with pytest.raises(figures.UserError, match="with other images"):
        figures.refuse_different_data([first, other])


def test_rows_of_each_kind_are_few_spread_and_the_same_each_time():
    defects = np.array(["good"] * 8 + ["scratch"] * 8 + ["stain"] * 8)
    rows = np.random.default_rng(0).permutation(24)
    assert figures.rows_of_each_kind(defects, rows, 2) == [10, 14, 18, 22, 2, 6]
    assert figures.rows_of_each_kind(defects, np.sort(rows), 2) == [10, 14, 18, 22, 2, 6]
    assert figures.rows_of_each_kind(defects, np.array([9]), 2) == [9]
