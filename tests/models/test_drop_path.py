from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.models.drop_path import DropPath, keyed_uniform, sample_keys

KEYS = sample_keys(0, torch.arange(20_000))
SEEDS = st.integers(0, 2**64 - 1)


def test_nothing_is_dropped_without_keys_or_at_rate_0() -> None:
    x = torch.zeros(3, 2, 2)
    assert DropPath([0.0, 0.5])(x, None) is None
    assert DropPath([0.0, 0.0])(x, KEYS[:3]) is None


def test_factors_keep_the_expectation() -> None:
    factors = DropPath([0.0, 0.25])(torch.zeros(20_000, 1, 1), KEYS)
    assert factors is not None
    assert factors.shape == (2, 2, 20_000, 1, 1)
    assert (factors[0] == 1).all()
    assert factors[1].unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert factors[1].mean(dim=(1, 2, 3)).tolist() == pytest.approx([1.0, 1.0], abs=0.02)
    half = DropPath([0.5])(torch.zeros(1, dtype=torch.bfloat16), KEYS[:1])
    assert half is not None
    assert half.dtype == torch.bfloat16


@given(SEEDS, st.permutations(range(40)), st.integers(1, 39))
def test_a_sample_is_treated_alike_whatever_else_is_in_its_batch(seed: int, slots: list[int], cut: int) -> None:
    """On any rank, in any micro-batch and in any order: the draws follow the slot."""
    drop_path = DropPath([0.2, 0.5, 0.8])

    def factors(of: list[int]) -> torch.Tensor:
        drawn = drop_path(torch.zeros(len(of), 1, 1), sample_keys(seed, torch.tensor(of)))
        assert drawn is not None
        return drawn

    whole = factors(list(range(40)))
    torch.testing.assert_close(torch.cat([factors(slots[:cut]), factors(slots[cut:])], dim=2), whole[:, :, slots])


@given(SEEDS)
def test_keyed_draws_are_uniform_and_independent(seed: int) -> None:
    draws = keyed_uniform(sample_keys(seed, torch.arange(4000)), 4).double()
    assert (draws >= 0).all()
    assert (draws < 1).all()
    assert draws.mean(dim=1).tolist() == pytest.approx([0.5] * 4, abs=0.03)
    assert draws.var(dim=1).tolist() == pytest.approx([1 / 12] * 4, abs=0.008)
    correlation = torch.corrcoef(torch.cat([draws, draws.roll(1, dims=1)])) - torch.eye(8)
    assert correlation.abs().max() < 0.09


@given(SEEDS, SEEDS)
def test_seeds_give_other_draws(one: int, other: int) -> None:
    slots = torch.arange(64)
    same = torch.equal(sample_keys(one, slots), sample_keys(other, slots))
    assert same == (one == other)


def test_known_values() -> None:
    """The first numbers of SplitMix64 from seed 0, as published with it."""
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    found = keyed_uniform(torch.tensor([0]), 3)[:, 0]
    assert found.tolist() == [(value >> 40) / 2**24 for value in expected]
