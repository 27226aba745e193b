"""What the pictures of codes show, and that the callback draws them for every method that has codes."""

import numpy as np
import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from torch.utils.data import DataLoader

from adbench.evaluation import codes as panels
from adbench.evaluation.extra_scores import ExtraScores
from adbench.evaluation.observers import Subject
from adbench.types import Batch, Scores


def normal(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_an_interpolation_of_one_tile_moves_that_tile_alone_along_a_straight_line():
    first, last = normal(2, 9, 4)
    paths = panels.interpolations(first, last, steps=5)
    assert list(paths) == ["all tiles", *(f"tile {k}" for k in range(1, 10))]
    np.testing.assert_allclose(paths["all tiles"][[0, -1]], [first, last])
    np.testing.assert_allclose(paths["all tiles"][2], (first + last) / 2, rtol=1e-5)
    tile = paths["tile 3"]
    assert (np.delete(tile, 2, axis=1) == np.delete(first, 2, axis=0)).all()
    np.testing.assert_allclose(tile[:, 2], paths["all tiles"][:, 2])
    assert list(panels.interpolations(first[:1], last[:1], 3)) == ["all tiles"]


def test_effective_dimensions_count_directions_of_equal_variance():
    base, line = np.zeros((2000, 1, 8), np.float32), np.zeros((2000, 1, 8), np.float32)
    base[:, 0, 0] = line[:, 0, 0] = 100  # far away, so that normalising hardly bends anything
    base[:, 0, 1:6], line[:, 0, 1] = normal(2000, 5), normal(2000)
    assert panels.effective_dimensions(base) == pytest.approx(5, abs=0.1)
    assert panels.effective_dimensions(line) == pytest.approx(1, abs=0.01)
    assert panels.effective_dimensions(np.ones((4, 1, 3), np.float32)) == 0.0


def test_the_plane_keeps_distances_of_codes_that_vary_in_two_directions():
    codes = np.zeros((50, 1, 6), np.float32)
    codes[:, 0, 0], codes[:, 0, 1:3] = 100, normal(50, 2)
    flat = panels.normalised(codes)
    apart = np.linalg.norm(flat[:, None] - flat, axis=-1)
    points = panels.plane(codes)
    np.testing.assert_allclose(np.linalg.norm(points[:, None] - points, axis=-1), apart, atol=1e-4)


def test_the_density_is_highest_where_the_points_are_and_sums_to_one():
    points = np.concatenate([normal(300, 2) * 0.1 + [1, -1], normal(30, 2) * 0.1 + [-1, 1]])
    lattice = panels.density(points, 60, 2.0)
    row, column = np.unravel_index(lattice.argmax(), lattice.shape)
    across = np.linspace(-2, 2, 60)
    assert abs(across[column] - 1) < 0.2
    assert abs(across[row] + 1) < 0.2
    assert lattice.sum() * (4 / 59) ** 2 == pytest.approx(1, abs=0.02)
    assert np.isfinite(panels.density(np.zeros((9, 2)), 10, 1.0)).all()


def test_tsne_keeps_the_clouds_of_two_tiles_apart_and_is_a_function_of_the_seed():
    codes = normal(20, 2, 5)
    codes[:, 1] += 40
    points = panels.tsne(codes, seed=1)
    assert points.shape == (20, 2, 2)
    between = np.linalg.norm(points[:, 0].mean(0) - points[:, 1].mean(0))
    assert between > 3 * points[:, 0].std(0).max()
    np.testing.assert_array_equal(panels.tsne(codes, seed=1), points)


class WithCodes(LightningModule):
    """Codes are the colours of the four quarters; decoding paints them."""

    decodes = True

    def codes(self, image):
        return torch.nn.functional.adaptive_avg_pool2d(image, 2).flatten(2).transpose(1, 2)

    def decode(self, codes):
        return codes.transpose(1, 2).unflatten(2, (2, 2)).repeat_interleave(4, 2).repeat_interleave(4, 3)

    def extra_scores(self, image):
        mean = image.mean((1, 2, 3))
        return {"bright": mean, "dark": -mean, "pair": torch.stack((mean, mean), 1)}

    def released_metrics(self, columns, label, folder):
        return {"rows": float(len(columns["pair"])), "folders": float(folder.max() + 1)}

    def test_step(self, batch, batch_idx):
        return Scores(batch.image.mean((1, 2, 3)), None)


class Plain(LightningModule):
    def test_step(self, batch, batch_idx):
        return Scores(batch.image.mean((1, 2, 3)), None)


KINDS = np.array(["good", "good", "spot"] * 6)
SUBJECT = Subject(KINDS, KINDS, np.arange(18), has_masks=False)


def after_a_test(method, *callbacks):
    label = torch.from_numpy((KINDS == "spot").astype(np.int64))
    image = torch.rand(18, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.4 * label[:, None, None, None]
    order = torch.arange(17, -1, -1)  # the test's order is not the table's
    mask = torch.zeros(18, 1, 8, 8, dtype=torch.bool)
    batches = [Batch(image[i], label[i], label[i], mask[i], i) for i in order.split(7)]
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(accelerator="cpu", enable_model_summary=False, callbacks=list(callbacks), **options)
    trainer.test(method, DataLoader(batches, batch_size=None), verbose=False)
    return image


def test_the_callback_draws_and_keeps_codes_row_by_row(tmp_path):
    image = after_a_test(WithCodes(), panels.CodePanels(tmp_path, SUBJECT, at_most=16))
    assert {p.name for p in tmp_path.iterdir()} == {
        "codes.npz", "codes_tsne.png", "codes_density.png", "codes_interpolation.png"
    }  # fmt: skip
    codes, kinds, rows = panels.load_codes(tmp_path / "codes.npz")
    assert rows.tolist() == sorted(rows.tolist())
    assert len(rows) == len(codes)
    np.testing.assert_allclose(codes, WithCodes().codes(image[2:]).numpy(), rtol=1e-5)  # rows 17 .. 2, sorted
    assert kinds.tolist() == KINDS[2:].tolist()


def test_a_method_without_codes_gets_no_pictures_and_no_extra_scores(tmp_path):
    extra = ExtraScores(SUBJECT)
    after_a_test(Plain(), panels.CodePanels(tmp_path / "figures", SUBJECT), extra)
    assert not (tmp_path / "figures").exists()
    assert extra.results() == {}


def test_extra_scores_are_ranked_and_handed_to_the_released_metrics():
    extra = ExtraScores(SUBJECT)
    after_a_test(WithCodes(), extra)
    assert extra.results() == {
        "ablation/bright_image_auroc": 1.0, "ablation/dark_image_auroc": 0.0,
        "released/rows": 18.0, "released/folders": 2.0,
    }  # fmt: skip


def test_two_runs_are_drawn_side_by_side_on_one_scale():
    figure = panels.draw_density({"without HSIC": normal(30, 9, 4), "with HSIC": normal(30, 9, 4) * 2})
    axes = figure.axes
    assert axes[0].get_xlim() == axes[1].get_xlim()
    assert "effective dimensions" in axes[0].get_title(loc="left")


class Named(WithCodes):
    """Two codes of an image, of which the first decodes."""

    code_names = ("z", "z_hat")

    def codes(self, image):
        mean = image.mean((2, 3))
        return torch.stack([mean, -mean], 1)

    def decode(self, codes):
        assert codes.shape[1:] == (1, 3)
        return codes[:, 0, :, None, None].expand(-1, -1, 4, 4)


def test_codes_with_names_are_drawn_apart_and_the_first_is_decoded(tmp_path):
    after_a_test(Named(), panels.CodePanels(tmp_path, SUBJECT))
    assert {p.name for p in tmp_path.iterdir()} == {
        "codes.npz", "codes_tsne_z.png", "codes_tsne_z_hat.png", "codes_density.png", "codes_interpolation.png"
    }  # fmt: skip


def test_no_codes_are_drawn_or_kept_where_none_are_wanted(tmp_path):
    after_a_test(WithCodes(), panels.CodePanels(tmp_path / "figures", SUBJECT, at_most=0))
    assert not (tmp_path / "figures").exists()


def test_codes_that_are_all_alike_are_drawn_in_one_place():
    assert not panels.tsne(np.ones((10, 2, 3), np.float32), 0).any()


def test_codes_that_are_not_finite_are_kept_and_not_drawn(tmp_path):
    method = WithCodes()
    method.codes = lambda image: torch.full((len(image), 4, 3), torch.nan)
    after_a_test(method, panels.CodePanels(tmp_path, SUBJECT))
    assert [p.name for p in tmp_path.iterdir()] == ["codes.npz"]


def test_codes_but_one_of_which_are_alike_have_finite_places():
    codes = np.ones((10, 1, 3), np.float32)
    codes[0] += 1e-6
    assert np.isfinite(panels.tsne(codes, 0)).all()
