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

MASKING = 0x4D61736B  # "Mask": makes the masks independent of other draws from the same keys


class Masking(NamedTuple):
    """Indices of each image's masked and visible patches."""

    masked: Tensor  # int64 [B, M]
    visible: Tensor  # int64 [B, N-M]

    def as_mask(self) -> Tensor:
        """Bool [B, N]: whether a patch is masked."""
        count = self.masked.shape[1] + self.visible.shape[1]
        mask = torch.zeros(len(self.masked), count, dtype=torch.bool, device=self.masked.device)
        return mask.scatter_(1, self.masked, True)


def random_masking(keys: Tensor, grid: Pair, ratio: float, unit: int = 1) -> Masking:
    """Mask the same number of patches in every image, drawn from its key alone (int64 [B], `drop_path.sample_keys`).

    With a `unit` above 1, squares of unit x unit patches are masked together (SimMIM, Xie et al. 2022), clipped at the
    bottom and right edges; the last is masked partially if the exact number of patches requires it.
    """
    h, w = grid
    across = -(-w // unit)
    rows, columns = (torch.arange(count, device=keys.device) // unit for count in grid)
    unit_of = (rows[:, None] * across + columns).flatten()  # [N]
    draws = keyed_bits(sample_keys(MASKING, keys), -(-h // unit) * across).T[:, unit_of]  # [B, N]
    order = draws.argsort(dim=1, stable=True)  # no two units of an image draw the same number
    masked, visible = order.tensor_split([num_masked(h * w, ratio)], dim=1)
    return Masking(masked, visible)
