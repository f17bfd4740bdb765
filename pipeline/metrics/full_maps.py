"""Maps at their original sizes, which an evaluation batch stores one after the other in a ragged field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def full_maps(targets: Mapping[str, Tensor], field: str) -> list[Tensor]:
    """The maps [H, W] of a ragged field, with sizes from the field of the same name plus `_size`."""
    flat, offsets = targets[field], targets[f"{field}.offsets"].tolist()
    sizes = targets[f"{field}_size"].tolist()
    return [
        flat[start:stop].view(height, width)
        for start, stop, (height, width) in zip(offsets[:-1], offsets[1:], sizes, strict=True)
    ]
