"""How many patches a ratio masks. Needs no torch, so plans stay quick."""

from __future__ import annotations


def num_masked(num_patches: int, ratio: float) -> int:
    """M: how many of an image's patches a ratio masks, at least one and not all of several."""
    return max(min(round(ratio * num_patches), num_patches - 1), 1)
