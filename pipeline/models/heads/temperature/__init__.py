"""Learned scale that multiplies similarities before they are compared, and an optional bias added to them (SigLIP)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.errors import ModelError
from pipeline.models.heads.base import HeadKind

if TYPE_CHECKING:
    from pipeline.models.heads.head import Head
    from pipeline.models.spec import HeadSpec, Pair, ViTSpec

LEAST = 1.0  # lower bound of the scale


class _Temperature(HeadKind):
    """Its options are `scale`, the initial scale, `most`, its upper bound, and `bias`, the initial bias.

    Without the option `bias` it has no bias. The task calls it.
    """

    vectors = ("logit_scale", "logit_bias")

    def check(self, spec: HeadSpec, backbone: ViTSpec) -> None:
        scale, most = spec.options["scale"], spec.options["most"]
        if not LEAST <= scale <= most:
            raise ModelError(f"temperature: found an initial scale of {scale:g}, expected {LEAST:g} to {most:g}")

    def reads(self, spec: HeadSpec, backbone: ViTSpec) -> None:
        return None

    def num_parameters(self, spec: HeadSpec, backbone: ViTSpec) -> int:
        return 1 + ("bias" in spec.options)

    def flops(self, spec: HeadSpec, backbone: ViTSpec, grid: Pair) -> int:
        return 0

    def build(self, spec: HeadSpec, backbone: ViTSpec) -> Head:
        from pipeline.models.heads.temperature.module import Temperature

        return Temperature(spec)


HEAD = _Temperature()
