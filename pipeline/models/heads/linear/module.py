"""The module of `linear`."""

from __future__ import annotations

from torch import Tensor

from pipeline.models.heads._layers import cells_per_patch, input_dim
from pipeline.models.heads._maps import CellOutputs, PatchHead
from pipeline.models.heads.head import Features
from pipeline.models.spec import HeadSpec, ViTSpec


class LinearHead(PatchHead):
    """Outputs [B, K, h, w], times the cells along each side."""

    def __init__(self, spec: HeadSpec, backbone: ViTSpec) -> None:
        super().__init__(spec, backbone)
        self.classes = CellOutputs(input_dim(spec, backbone), spec.outputs, cells_per_patch(spec))

    def forward(self, features: Features) -> Tensor:
        outputs: Tensor = self.classes(self.patches(features), features.grid)
        return outputs

    def initialise(self) -> None:
        self.classes.initialise()
