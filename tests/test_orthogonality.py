import csv
from types import SimpleNamespace

import pytest
import torch

import adbench.studies.orthogonality as command
from adbench.studies.orthogonality import orthogonality, write_curves
from adbench.types import UserError


def normals(count: int = 12, side: int = 16) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def test_the_identity_gives_one_curve_twice_and_the_distance_of_the_corruption():
    images = normals()
    points = orthogonality(lambda x: x, images, widths=(0.25, 0.5, 1.0), repeats=2)
    assert [p.width for p in points] == [0.25, 0.5, 1.0]
    assert all(p.corrupted_nearest == p.reconstruction_nearest for p in points)
    # E‖x_S - y_S‖² = |S| · 2σ² with σ² = 1/12 for uniform pixels (Proposition 2): here |S| = 3 · 8 · 8.
    assert points[1].distance_mean == pytest.approx((3 * 64 / 6) ** 0.5, rel=0.05)


def test_the_source_is_nearest_below_half_of_the_pixels_and_the_partner_above():
    """The paper's Figure 9: |S| = |S̄| at a width of 0.707."""
    points = orthogonality(lambda x: x, normals(), widths=(0.2, 0.6, 0.85, 1.0))
    assert [p.corrupted_nearest for p in points] == [1.0, 1.0, 0.0, 0.0]


def test_a_perfect_projection_finds_its_source_at_every_width():
    images = normals(6)

    def project(corrupted: torch.Tensor) -> torch.Tensor:
        """Images whose corner pixel survived are recognised by it."""
        key = (corrupted[:, None, :, 0, 0] - images[None, :, :, 0, 0]).square().sum(-1).argmin(dim=1)
        return images[key]

    inner = images.clone()
    points = orthogonality(project, inner, widths=(0.9,), repeats=8)
    assert points[0].corrupted_nearest < 0.2
    assert points[0].reconstruction_nearest > 0.5  # all but the squares that cover the corner
    assert orthogonality(lambda x: images[: len(x)], images, widths=(0.5,), rows=6)[0].distance_mean == 0


def test_the_result_is_a_function_of_the_seed():
    images = normals()
    first, again, other = (orthogonality(lambda x: x, images, widths=(0.5,), seed=s) for s in (0, 0, 1))
    assert first == again != other


def test_impossible_requests_are_refused():
    with pytest.raises(UserError, match="at least 2"):
        orthogonality(lambda x: x, normals(1))
    with pytest.raises(UserError, match=r"\(0, 1\]"):
        orthogonality(lambda x: x, normals(), widths=(1.5,))


def test_the_curves_are_written_as_a_table_and_a_figure(tmp_path):
    points = orthogonality(lambda x: x, normals(), widths=(0.25, 0.5))
    table, figure = write_curves(points, tmp_path)
    rows = list(csv.DictReader(table.open()))
    assert [float(row["width"]) for row in rows] == [0.25, 0.5]
    assert float(rows[1]["distance_mean"]) == pytest.approx(points[1].distance_mean, rel=1e-4)
    assert figure.stat().st_size > 5000


def test_the_command_writes_curves_and_moments_and_says_how_many_pairs_violate(tmp_path, monkeypatch, capsys):
    cfg = SimpleNamespace(seed=0, data=SimpleNamespace(kind="texture"))
    monkeypatch.setattr(command, "_of_run", lambda run: (normals(), lambda x: x, cfg))
    assert command.main(["RUN", "--widths", "0.25", "--out", str(tmp_path / "out")]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "orthogonality.csv", "orthogonality.png", "pixel_moments.png",
    }  # fmt: skip
    assert "0 of 660 pairs differ more inside" in capsys.readouterr().out
