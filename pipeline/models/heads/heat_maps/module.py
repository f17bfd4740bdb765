"""The module of `heat_maps`."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.heads._layers import input_dim
from pipeline.models.heads._maps import PatchHead, as_map
from pipeline.models.heads.head import Features
from pipeline.models.heads.heat_maps import FINER
from pipeline.models.spec import HeadSpec, ViTSpec

SMALL = 0.001  # standard deviation: heat maps are zero nearly everywhere


class HeatMaps(PatchHead):
    """Outputs [B, K, 4 h, 4 w] of a grid of h x w patches."""

    def __init__(self, spec: HeadSpec, backbone: ViTSpec) -> None:
        super().__init__(spec, backbone)
        self.classes = nn.Conv2d(input_dim(spec, backbone), spec.outputs, kernel_size=3, padding=1)
        self.initialise()

    def forward(self, features: Features) -> Tensor:
        finer = F.interpolate(as_map(self.patches(features), features), scale_factor=FINER, mode="bilinear")
        outputs: Tensor = self.classes(F.relu(finer))
        return outputs

    def initialise(self) -> None:
        nn.init.normal_(self.classes.weight, std=SMALL)
        assert self.classes.bias is not None
        nn.init.zeros_(self.classes.bias)
