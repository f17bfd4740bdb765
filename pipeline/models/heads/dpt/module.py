"""The module of `dpt`.

Legend: B batch, D width of the tokens, C channels, K outputs, (h, w) grid of patches, L layers.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.heads._maps import SMALL, PatchHead, as_map
from pipeline.models.heads.dpt import dpt_layers, half, hidden_dim
from pipeline.models.heads.head import Features
from pipeline.models.layers import Linear
from pipeline.models.spec import HeadSpec, ViTSpec


class DPT(PatchHead):
    """Outputs [B, K, 2^(L-2) h, 2^(L-2) w].

    As DPT, without what does nothing for plain patch tokens: no readout of CLS, and the same number of channels at all
    scales.
    """

    def __init__(self, spec: HeadSpec, backbone: ViTSpec) -> None:
        layers, c = dpt_layers(spec, backbone), hidden_dim(spec)
        super().__init__(spec, backbone, layers)
        self.projections = nn.ModuleList(Linear(backbone.embed_dim, c) for _ in layers)
        self.scales = nn.ModuleList(_scale(c, len(layers) - 2 - place) for place in range(len(layers)))
        self.fusions = nn.ModuleList(Fusion(c, has_coarser=place + 1 < len(layers)) for place in range(len(layers)))
        self.hidden = nn.Conv2d(c, half(c), kernel_size=3, padding=1)
        self.classes = nn.Conv2d(half(c), spec.outputs, kernel_size=1)
        self.initialise()

    def forward(self, features: Features) -> Tensor:
        parts = zip(self.each_layer(features), self.projections, self.scales, strict=True)
        maps = [scale(as_map(projection(tokens), features)) for tokens, projection, scale in parts]
        fused = None
        for one, fusion in zip(reversed(maps), reversed(self.fusions), strict=True):
            fused = fusion(one, fused)
        outputs: Tensor = self.classes(F.relu(self.hidden(fused)))
        return outputs

    def initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                assert module.bias is not None
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, Unit):
                nn.init.zeros_(module.second.weight)  # without norms, residual sums would grow with every unit
        nn.init.trunc_normal_(self.classes.weight, std=SMALL)


class Unit(nn.Module):
    """Two 3x3 convolutions, each after a ReLU, added to their input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        self.second = nn.Conv2d(channels, channels, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.relu(self.first(F.relu(x))))


class Fusion(nn.Module):
    """Adds the fusion of all coarser maps, resized bilinearly, to a map [B, C, y, x]."""

    def __init__(self, channels: int, *, has_coarser: bool) -> None:
        super().__init__()
        self.own = Unit(channels) if has_coarser else None
        self.both = Unit(channels)

    def forward(self, x: Tensor, coarser: Tensor | None) -> Tensor:
        if self.own is not None and coarser is not None:
            x = self.own(x) + F.interpolate(coarser, x.shape[2:], mode="bilinear")
        fused: Tensor = self.both(x)
        return fused


def _scale(channels: int, power: int) -> nn.Module:
    """Resizes a map on the patch grid to 2^power times its size."""
    if power == 0:
        return nn.Identity()
    if power < 0:
        return nn.Conv2d(channels, channels, kernel_size=3, stride=2, padding=1)
    return nn.ConvTranspose2d(channels, channels, kernel_size=2**power, stride=2**power)
