"""Number of patches that a ratio masks. Imports no torch, so plans stay quick."""

from __future__ import annotations


def num_masked(num_patches: int, ratio: float) -> int:
    """M: number of an image's patches that a ratio masks, at least one and, if there are several, never all."""
    return max(min(round(ratio * num_patches), num_patches - 1), 1)
