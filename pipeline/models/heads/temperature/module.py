"""The module of `temperature`; its keys are open_clip's."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from pipeline.models.heads.head import Head
from pipeline.models.spec import HeadSpec


class Temperature(Head):
    """Learns the logarithm of the scale (Radford et al. 2021), clamped so that the scale is between 1 and `most`."""

    logit_bias: nn.Parameter | None

    def __init__(self, spec: HeadSpec) -> None:
        super().__init__()
        self.options, self.most = spec.options, float(spec.options["most"])
        self.logit_scale = nn.Parameter(torch.zeros(1))
        has_bias = "bias" in spec.options
        self.register_parameter("logit_bias", nn.Parameter(torch.zeros(1)) if has_bias else None)
        self.initialise()

    def initialise(self) -> None:
        nn.init.constant_(self.logit_scale, math.log(self.options["scale"]))
        if self.logit_bias is not None:
            nn.init.constant_(self.logit_bias, self.options["bias"])

    def forward(self) -> dict[str, Tensor]:
        """Returns `scale` and, if there is one, `bias`, fp32 []."""
        held: Tensor = _Held.apply(self.logit_scale.float(), math.log(self.most))
        values = {"scale": held.sum().exp()}
        return values if self.logit_bias is None else values | {"bias": self.logit_bias.float().sum()}


class _Held(Function):
    """Clamps to [0, most]; at a bound, only gradients leading away from it pass, so the value cannot get stuck."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, most: float) -> Tensor:
        ctx.save_for_backward(value)
        ctx.most = most
        return value.clamp(0, most)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (value,) = ctx.saved_tensors
        stays = ((value < ctx.most) | (gradient > 0)) & ((value > 0) | (gradient < 0))  # steps go against it
        return gradient * stays, None
