from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.tasks.keypoints.heat_maps import gaussians, peaks

VIEW = (64, 48)


@settings(max_examples=50, deadline=None)
@given(st.floats(8, 40), st.floats(8, 56), st.floats(0.8, 3), st.sampled_from([(32, 24), (16, 12), (64, 48)]))
def test_a_peak_is_where_its_gaussian_is(x: float, y: float, sigma: float, cells: tuple[int, int]) -> None:
    """Of cells that have neighbours on all sides."""
    maps = gaussians(torch.tensor([[[x, y]]]), VIEW, cells, sigma)
    assert maps.shape == (1, 1, *cells)
    assert maps.max() <= 1
    found = peaks(maps, VIEW)[0, 0]
    assert found[:2].tolist() == pytest.approx([x, y], abs=0.02)
    assert found[2] == maps.max()


def test_a_gaussian_by_hand() -> None:
    maps = gaussians(torch.tensor([[[10.0, 30.0]]]), VIEW, (32, 24), 2.0)[0, 0]
    assert maps[14, 4].item() == pytest.approx(torch.exp(torch.tensor(-(0.5**2 + 0.5**2) / 8)).item())
    assert maps[20, 9].item() == pytest.approx(torch.exp(torch.tensor(-(4.5**2 + 5.5**2) / 8)).item())


def test_peaks_at_the_border_and_in_noise_are_finite() -> None:
    maps = torch.zeros(1, 3, 8, 8)
    maps[0, 0, 0, 7] = 1
    maps[0, 1] = -torch.rand(8, 8)
    found = peaks(maps, (64, 64))
    assert found.isfinite().all()
    assert found[0, 0].tolist() == [60, 4, 1]
