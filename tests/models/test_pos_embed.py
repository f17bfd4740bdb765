from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.layers import resample_abs_pos_embed

from pipeline.models.pos_embed import resize_positions, sincos_positions

sides = st.integers(1, 12)
grids = st.tuples(sides, sides)


def field(grid: tuple[int, int], num_prefix: int, dim: int = 6) -> torch.Tensor:
    return torch.randn(1, num_prefix + grid[0] * grid[1], dim, generator=torch.Generator().manual_seed(0))


@given(grids, grids, st.integers(0, 3))
def test_equals_timms_resampling(old: tuple[int, int], new: tuple[int, int], num_prefix: int) -> None:
    positions = field(old, num_prefix)
    expected = resample_abs_pos_embed(positions, list(new), list(old), num_prefix_tokens=num_prefix)
    torch.testing.assert_close(resize_positions(positions, old, new), expected, atol=1e-5, rtol=1e-5)


@given(grids, grids)
def test_constant_field_is_preserved(old: tuple[int, int], new: tuple[int, int]) -> None:
    positions = torch.full((1, old[0] * old[1], 2), 0.7)
    torch.testing.assert_close(resize_positions(positions, old, new), torch.full((1, new[0] * new[1], 2), 0.7))


def test_equal_counts_in_another_grid_are_resized() -> None:
    positions = field((2, 8), 1)
    resized = resize_positions(positions, (2, 8), (4, 4))
    assert resized.shape == positions.shape
    assert torch.equal(resized[:, :1], positions[:, :1])
    assert not torch.allclose(resized[:, 1:], positions[:, 1:], atol=0.1)


def test_growing_and_shrinking_back_keeps_a_smooth_field() -> None:
    smooth = sincos_positions((14, 14), 16)
    smooth[..., [0, 4, 8, 12]] = 0  # the fastest waves are not smooth on this grid
    back = resize_positions(resize_positions(smooth, (14, 14), (28, 28)), (28, 28), (14, 14))
    assert (back - smooth).abs().mean() < 0.05 * smooth.abs().mean()


def test_gradient_reaches_the_one_grid() -> None:
    positions = field((4, 4), 1).requires_grad_()
    resize_positions(positions, (4, 4), (7, 5)).sum().backward()
    assert positions.grad is not None
    # Rows of the resize matrices sum to 1, so the gradient's total is the number of new positions.
    assert positions.grad[0, 1:].sum().item() == pytest.approx(35 * 6, rel=1e-4)


def test_half_precision_is_computed_in_fp32() -> None:
    positions = field((7, 7), 1).bfloat16()
    expected = resize_positions(positions.float(), (7, 7), (14, 14)).bfloat16()
    assert torch.equal(resize_positions(positions, (7, 7), (14, 14)), expected)


def test_sincos_matches_its_definition() -> None:
    table = sincos_positions((2, 3), 8, num_prefix=1)
    assert table.shape == (1, 7, 8)
    assert not table[0, 0].any()
    row, column = 1, 2
    expected = [f(torch.tensor(x * w)) for x in (column, row) for f in (torch.sin, torch.cos) for w in (1.0, 0.01)]
    torch.testing.assert_close(table[0, 1 + row * 3 + column], torch.stack(expected))
