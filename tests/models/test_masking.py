from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.models.drop_path import sample_keys
from pipeline.models.mask_ratio import num_masked
from pipeline.models.masking import random_masking

SEEDS = st.integers(0, 2**64 - 1)
GRIDS = st.tuples(st.integers(1, 9), st.integers(1, 9))
RATIOS = st.floats(0.01, 0.99)


@given(SEEDS, GRIDS, RATIOS, st.integers(1, 4), st.permutations(range(12)), st.integers(1, 11))
def test_a_mask_follows_the_slot_alone(
    seed: int, grid: tuple[int, int], ratio: float, unit: int, slots: list[int], cut: int
) -> None:
    """On any rank, in any micro-batch and in any order."""
    whole = random_masking(sample_keys(seed, torch.arange(12)), grid, ratio, unit).as_mask()
    parts = [
        random_masking(sample_keys(seed, torch.tensor(part)), grid, ratio, unit).as_mask()
        for part in (slots[:cut], slots[cut:])
    ]
    assert torch.equal(torch.cat(parts), whole[slots])


@given(SEEDS, GRIDS, RATIOS, st.integers(1, 4))
def test_every_patch_is_masked_or_visible_and_as_many_of_each_image(
    seed: int, grid: tuple[int, int], ratio: float, unit: int
) -> None:
    patches = grid[0] * grid[1]
    masking = random_masking(sample_keys(seed, torch.arange(5)), grid, ratio, unit)
    assert masking.masked.shape == (5, num_masked(patches, ratio))
    numbers = torch.cat([masking.masked, masking.visible], dim=1).sort(dim=1).values
    assert torch.equal(numbers, torch.arange(patches).expand(5, -1))
    assert torch.equal(masking.as_mask().nonzero()[:, 1].view(5, -1), masking.masked.sort(dim=1).values)


@given(SEEDS, GRIDS, RATIOS, st.integers(2, 4))
def test_units_are_masked_as_one_but_for_the_last(seed: int, grid: tuple[int, int], ratio: float, unit: int) -> None:
    masks = random_masking(sample_keys(seed, torch.arange(3)), grid, ratio, unit).as_mask().view(3, *grid)
    for mask in masks:
        units = [square.flatten() for rows in mask.split(unit) for square in rows.split(unit, dim=1)]
        assert sum(bool(square.any() and not square.all()) for square in units) <= 1


def test_patches_are_masked_alike_often_and_apart_from_each_other() -> None:
    mask = random_masking(sample_keys(3, torch.arange(20_000)), (4, 4), 0.75).as_mask().double()
    assert mask.mean(dim=0).tolist() == pytest.approx([0.75] * 16, abs=0.015)
    # Of patches drawn without replacement, any two are correlated by -1 / (N - 1).
    apart = torch.corrcoef(mask.T)[~torch.eye(16, dtype=torch.bool)]
    assert (apart + 1 / 15).abs().max() < 0.04


@given(SEEDS, SEEDS)
def test_seeds_give_other_masks(one: int, other: int) -> None:
    slots = torch.arange(64)
    masks = [random_masking(sample_keys(seed, slots), (8, 8), 0.5).masked for seed in (one, other)]
    assert torch.equal(*masks) == (one == other)
