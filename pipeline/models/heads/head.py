"""The modules of heads, and what they read.

Legend: B batch, P prefix tokens, (h, w) grid, N = h * w patches, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor, nn

from pipeline.models.spec import Pair


class Features(NamedTuple):
    """What the encoder made of images: `tokens` [B, P+N, D] of its last layer, and whole outputs of other `layers`.

    Where all heads read leading tokens alone, there are only these.
    """

    tokens: Tensor
    layers: Mapping[int, Tensor]
    grid: Pair
    num_prefix: int

    @property
    def patches(self) -> Tensor:
        """[B, N, D] of the last layer."""
        return self.tokens[:, self.num_prefix :]


class Head(nn.Module):
    """A head. `forward(features)` gives its output; what a task calls itself may take other arguments."""

    @property
    def encoder_norm(self) -> nn.Module | None:
        """The norm that follows the encoder's last layer, which the head begins with; None if it has none."""
        return getattr(self, "norm", None)

    def initialise(self) -> None:
        """Set what starts otherwise than an initialiser leaves it: all matrices drawn, all biases zero."""
