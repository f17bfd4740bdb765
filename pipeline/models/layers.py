"""Small layers of the encoder."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.arithmetic import linear
from pipeline.models.dropout import dropout


def quick_gelu(x: Tensor) -> Tensor:
    """Returns x * sigmoid(1.702 x), the approximation that OpenAI's CLIP was trained with."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu, "quick_gelu": quick_gelu}


class Linear(nn.Linear):
    """`nn.Linear`, computed by `arithmetic.linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class ActivatedLinear(nn.Linear):
    """Activation, dropout and product: the second half of a feed-forward, fused if that is faster.

    `recomputed` means that activations are checkpointed, so keeping fewer of them here gains nothing.
    """

    def __init__(self, in_features: int, out_features: int, activation: str, rate: float) -> None:
        super().__init__(in_features, out_features)
        self.activation, self.rate = activation, rate
        self.recomputed = False

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """[B, T, in] -> [B, T, out]; `keys` as in `dropout`."""
        if self.activation == "gelu" and keys is None and not self.recomputed:
            return linear(x, self.weight, self.bias, gelu=True)
        return linear(dropout(ACTIVATIONS[self.activation](x), keys, self.rate), self.weight, self.bias)


class LayerScale(nn.Module):
    """A learned factor per channel at the end of a residual branch (CaiT, Touvron et al. 2021)."""

    def __init__(self, dim: int, init: float) -> None:
        super().__init__()
        self.init = init
        self.gamma = nn.Parameter(torch.full((dim,), init))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma
