import numpy as np
import pytest
import torch
from torch import nn

from adbench.networks.mlp import FeatureScaling, refuse_far_rows
from adbench.types import UserError

GENERATOR = torch.Generator().manual_seed(0)
ROWS = torch.randn(200, 3, generator=GENERATOR, dtype=torch.float64)
SINCE_1970 = ROWS + torch.tensor([1.7e9, 0.0, 0.0], dtype=torch.float64)  # seconds


def scaled(rows: torch.Tensor, scaling: str) -> torch.Tensor:
    module = FeatureScaling(3, scaling)
    module.fit([rows[:100], rows[100:]])
    return module(rows)


@pytest.mark.parametrize("scaling", ["min_max", "clipped"])
def test_a_column_far_from_zero_is_scaled_as_it_is_near_zero(scaling):
    near, far = scaled(ROWS, scaling), scaled(SINCE_1970, scaling)
    assert near.dtype == far.dtype == torch.float32
    torch.testing.assert_close(far, near, rtol=0, atol=1e-6)


@pytest.mark.parametrize("scaling", ["min_max", "clipped"])
def test_ordinary_features_are_scaled_as_in_float32(scaling):
    rows = ROWS.float()
    low, high = rows.amin(0), rows.amax(0)
    expected = (rows - low) / (high - low)
    if scaling == "clipped":
        expected = ((rows - rows.mean(0)) / rows.std(0, correction=0)).clamp(-3, 3)
    torch.testing.assert_close(scaled(ROWS, scaling), expected, rtol=0, atol=1e-6)


def test_unscaled_features_that_float32_cannot_tell_apart_are_refused():
    with pytest.raises(UserError, match=r"column 0 .* 16999.*method\.scaling=min_max"):
        scaled(SINCE_1970, "none")
    torch.testing.assert_close(scaled(ROWS, "none"), ROWS.float())


@pytest.mark.parametrize("value", [0.0, 0.1, 1.7e9])
@pytest.mark.parametrize("scaling", ["min_max", "clipped", "none"])
def test_a_column_that_is_constant_but_for_rounding_keeps_its_unit(value, scaling):
    rows = ROWS.clone()
    rows[:, 0] = value
    rows[::2, 0] = np.nextafter(value, np.inf) if value else 0.0
    out = scaled(rows, scaling)[:, 0]
    assert (out - (value if scaling == "none" else 0)).abs().max() < 1e-6 * max(1, value)


def refuse(rows: torch.Tensor, scaling: str, far: float | None = None) -> None:
    method = nn.Module()
    method.input = FeatureScaling(3, scaling)
    method.input.far = far or method.input.far
    refuse_far_rows(method, rows, torch.arange(100), torch.tensor([5, 120, 150]))


def test_a_row_whose_score_would_overflow_is_named_before_the_training():
    rows = ROWS.clone()
    rows[150, 1] = 3e38
    for scaling in ("min_max", "none"):
        with pytest.raises(UserError, match=r"row 150, column 1 .* holds 3e\+38, and the training rows lie between -"):
            refuse(rows, scaling)
    refuse(rows, "clipped")  # where it becomes 3
    refuse(rows, "none", far=3.4e38)
    refuse(ROWS, "min_max")
    rows[150, 1], rows[170, 1] = 0.0, 3e38
    refuse(rows, "min_max")  # a row that nothing scores
    refuse_far_rows(nn.Linear(3, 1), rows, torch.arange(100), torch.arange(200))
