"""Random masks of patches, keyed by sample: the same for a sample in any batch, on any rank.

Legend: B batch, (h, w) grid, N = h * w patches, M masked ones.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.models.drop_path import keyed_bits, sample_keys
from pipeline.models.mask_ratio import num_masked
from pipeline.models.spec import Pair

MASKING = 0x4D61736B  # "Mask": what else is drawn from the same keys is independent of the masks


class Masking(NamedTuple):
    """Which patches of each image are masked: their numbers, and those of the others."""

    masked: Tensor  # int64 [B, M]
    visible: Tensor  # int64 [B, N-M]

    def as_mask(self) -> Tensor:
        """Bool [B, N]: whether a patch is masked."""
        count = self.masked.shape[1] + self.visible.shape[1]
        mask = torch.zeros(len(self.masked), count, dtype=torch.bool, device=self.masked.device)
        return mask.scatter_(1, self.masked, True)


def random_masking(keys: Tensor, grid: Pair, ratio: float, unit: int = 1) -> Masking:
    """Mask equally many patches of every image, drawn from its key (int64 [B], see `drop_path.sample_keys`) alone.

    With a `unit` above 1, squares of unit x unit patches are masked as one (SimMIM, Xie et al. 2022), cut off at the
    lower and right edges; the last of them is masked in part where the number of patches asks for it.
    """
    h, w = grid
    across = -(-w // unit)
    rows, columns = (torch.arange(count, device=keys.device) // unit for count in grid)
    unit_of = (rows[:, None] * across + columns).flatten()  # [N]
    draws = keyed_bits(sample_keys(MASKING, keys), -(-h // unit) * across).T[:, unit_of]  # [B, N]
    order = draws.argsort(dim=1, stable=True)  # no two units of an image draw the same
    masked, visible = order.tensor_split([num_masked(h * w, ratio)], dim=1)
    return Masking(masked, visible)
