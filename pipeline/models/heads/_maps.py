"""Base modules of heads on patches.

Legend: B batch, P prefix tokens, (h, w) grid, N = h * w patches, D width, L layers that are read, K outputs, r cells
along each side of a patch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.models.arithmetic import linear
from pipeline.models.heads._layers import layers_read
from pipeline.models.heads.head import Features, Head
from pipeline.models.spec import HeadSpec, Pair, ViTSpec

SMALL = 0.02  # standard deviation


class PatchHead(Head):
    """A head on the maps of L layers, each through its own LayerNorm.

    Many linear probes use BatchNorm; with LayerNorm, results do not depend on ranks and micro-batches.
    """

    def __init__(self, spec: HeadSpec, backbone: ViTSpec, layers: tuple[int, ...] | None = None) -> None:
        super().__init__()
        self.layers = layers or layers_read(spec, backbone)
        self.norms = nn.ModuleList(nn.LayerNorm(backbone.embed_dim, eps=backbone.eps) for _ in self.layers)

    @property
    def encoder_norm(self) -> nn.Module:
        return self.norms[-1]

    def patches(self, features: Features) -> Tensor:
        """[B, N, L*D]."""
        maps = self.each_layer(features)
        return maps[0] if len(maps) == 1 else torch.cat(maps, dim=2)

    def each_layer(self, features: Features) -> list[Tensor]:
        """[B, N, D] of each layer."""
        layers = zip(self.layers, self.norms, strict=True)
        return [norm(features.layers[n][:, features.num_prefix :]) for n, norm in layers]


class CellOutputs(nn.Module):
    """Outputs of the r x r cells of each patch, linear in its token, so that borders are finer than the patches.

    Rows of both parameters are the classes.
    """

    def __init__(self, dim: int, outputs: int, cells: int) -> None:
        super().__init__()
        self.cells = cells
        self.weight = nn.Parameter(torch.empty(outputs, cells * cells, dim))
        self.bias = nn.Parameter(torch.zeros(outputs, cells * cells))
        self.initialise()

    def forward(self, tokens: Tensor, grid: Pair) -> Tensor:
        """[B, N, D] -> [B, K, h*r, w*r]."""
        outputs = linear(tokens, self.weight.flatten(0, 1), self.bias.flatten())
        if self.cells == 1:
            return outputs.transpose(1, 2).unflatten(2, grid)
        (h, w), r = grid, self.cells
        return (
            outputs.view(len(tokens), h, w, -1, r, r).permute(0, 3, 1, 4, 2, 5).reshape(len(tokens), -1, h * r, w * r)
        )

    def initialise(self) -> None:
        """Small, so that the first loss is that of a random guess."""
        nn.init.trunc_normal_(self.weight, std=SMALL)
        nn.init.zeros_(self.bias)


def as_map(tokens: Tensor, features: Features) -> Tensor:
    """[B, N, K] -> [B, K, h, w]."""
    return tokens.transpose(1, 2).unflatten(2, features.grid)
