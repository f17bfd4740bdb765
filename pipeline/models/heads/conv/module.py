"""The module of `conv`."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.heads._layers import cells_per_patch, input_dim
from pipeline.models.heads._maps import CellOutputs, PatchHead, as_map
from pipeline.models.heads.conv import hidden_dim
from pipeline.models.heads.head import Features
from pipeline.models.spec import HeadSpec, ViTSpec


class ConvHead(PatchHead):
    """Outputs [B, K, h, w], times the cells along each side; patches see their neighbours."""

    def __init__(self, spec: HeadSpec, backbone: ViTSpec) -> None:
        super().__init__(spec, backbone)
        self.hidden = nn.Conv2d(input_dim(spec, backbone), hidden_dim(spec), kernel_size=3, padding=1)
        self.classes = CellOutputs(hidden_dim(spec), spec.outputs, cells_per_patch(spec))

    def forward(self, features: Features) -> Tensor:
        hidden = F.relu(self.hidden(as_map(self.patches(features), features)))  # [B, hidden, h, w]
        outputs: Tensor = self.classes(hidden.flatten(2).transpose(1, 2), features.grid)
        return outputs

    def initialise(self) -> None:
        nn.init.kaiming_normal_(self.hidden.weight, nonlinearity="relu")
        self.classes.initialise()
