"""A causal transformer that embeds a text as one vector, comparable with images' (CLIP, Radford et al. 2021)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.errors import ModelError
from pipeline.models.heads.base import HeadKind
from pipeline.models.heads.text_tower.shape import text_spec, tower_flops, tower_parameters, tower_values

if TYPE_CHECKING:
    from pipeline.models.heads.head import Head
    from pipeline.models.spec import HeadSpec, Pair, ViTSpec


class _TextTower(HeadKind):
    """Its options are `tokens`, the vocabulary size, `length`, tokens per text, `dim`, `depth` and `num_heads`.

    The task calls it.
    """

    output = "embedding"
    vectors = ("positions",)

    def check(self, spec: HeadSpec, backbone: ViTSpec) -> None:
        for name in ("tokens", "length", "dim", "depth", "num_heads"):
            if spec.options[name] < 1:
                raise ModelError(f"text.{name}: found {spec.options[name]}, expected at least 1")
        try:
            text_spec(spec, backbone)
        except ModelError as error:
            raise ModelError(f"text.{str(error).removeprefix('model.')}") from None

    def reads(self, spec: HeadSpec, backbone: ViTSpec) -> None:
        return None

    def num_parameters(self, spec: HeadSpec, backbone: ViTSpec) -> int:
        return tower_parameters(spec, backbone)

    def flops(self, spec: HeadSpec, backbone: ViTSpec, grid: Pair) -> int:
        return tower_flops(spec, backbone)

    def kept_values(self, spec: HeadSpec, backbone: ViTSpec, grid: Pair) -> int:
        return tower_values(spec, backbone)

    def build(self, spec: HeadSpec, backbone: ViTSpec) -> Head:
        from pipeline.models.heads.text_tower.module import TextTower

        return TextTower(spec, backbone)


HEAD = _TextTower()
