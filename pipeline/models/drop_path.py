"""Stochastic depth: selects which residual branches a training step drops, per sample.

Legend: B samples, L layers of two branches each (attention, feed-forward).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipeline.models.constants import constant

# SplitMix64 (Steele, Lea and Flood 2014), in the wrap-around arithmetic of int64.
GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
MULTIPLIERS = (0xBF58476D1CE4E5B9 - (1 << 64), 0x94D049BB133111EB - (1 << 64))
SHIFTS = (30, 27, 31)
MANTISSA_BITS = 24  # of fp32, which holds uniform draws of this precision exactly


class DropPath(nn.Module):
    """Drops residual branches per sample (Huang et al. 2016) and scales the others to keep the expectation.

    `rates` are the layers' drop probabilities. Draws depend only on the samples' keys, so a sample is treated the same
    in any batch and on any rank.
    """

    def __init__(self, rates: Sequence[float]) -> None:
        super().__init__()
        self.rates = tuple(rates)

    def forward(self, x: Tensor, keys: Tensor | None) -> Tensor | None:
        """Batch [B, ...] and keys int64 [B] -> factors [L, 2, B, 1, 1] of the branches, 0 or 1 / (1 - rate).

        None if all branches are kept, as without keys.
        """
        if keys is None or not any(self.rates):
            return None
        assert len(keys) == len(x), f"{len(keys)} keys for a batch of {len(x)}"
        uniform = keyed_uniform(keys, 2 * len(self.rates))
        rates = constant(self.rates, x.device).view(-1, 1, 1, 1, 1)
        kept = uniform.view(len(self.rates), 2, len(x), 1, 1) >= rates
        return (kept / (1 - rates)).to(x.dtype)


def sample_keys(seed: int, slots: Tensor) -> Tensor:
    """int64 [B] keys of the samples in these slots (int64 [B]) of the stream, for a 64-bit seed."""
    return mix(mix(slots + GOLDEN) ^ (seed - (1 << 64) if seed >> 63 else seed))


def keyed_bits(keys: Tensor, count: int) -> Tensor:
    """int64 [count, B]: the first `count` numbers of each key's stream, all different."""
    steps = torch.arange(1, count + 1, device=keys.device)[:, None] * GOLDEN
    return mix(keys + steps)


def keyed_uniform(keys: Tensor, count: int) -> Tensor:
    """fp32 [count, B] in [0, 1): the first `count` numbers of the stream of each key."""
    return _shift_right(keyed_bits(keys, count), 64 - MANTISSA_BITS).float() / (1 << MANTISSA_BITS)


def mix(x: Tensor) -> Tensor:
    """SplitMix64's mixing function, a bijection on int64."""
    for shift, multiplier in zip(SHIFTS, MULTIPLIERS, strict=False):
        x = (x ^ _shift_right(x, shift)) * multiplier
    return x ^ _shift_right(x, SHIFTS[-1])


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical right shift, as for unsigned numbers: fills with zeros."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
