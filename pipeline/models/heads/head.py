"""The base module of heads, and the features they read.

Legend: B batch, P prefix tokens, (h, w) grid, N = h * w patches, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor, nn

from pipeline.models.spec import Pair


class Features(NamedTuple):
    """The encoder's features of images: `tokens` [B, P+N, D] of its last layer, and full outputs of other `layers`.

    All are outputs of layers, which no norm follows: a head begins with its own. `layers` has those that heads read, by
    number, each [B, P+N, D]. If all heads read only leading tokens, `tokens` holds only these.
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
    """A head. `forward(features)` returns its output; heads called by a task may take other arguments.

    Products are `pipeline.models.layers.Linear`, which is `nn.Linear` with the quickest arithmetic of the device.
    """

    @property
    def encoder_norm(self) -> nn.Module | None:
        """The norm after the encoder's last layer, with which the head begins; None if it has none."""
        return getattr(self, "norm", None)

    def initialise(self) -> None:
        """Override what starts differently from an initialiser's random matrices and zero biases."""
