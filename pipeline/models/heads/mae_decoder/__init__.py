"""The decoder of masked autoencoders (He et al. 2022): predicts pixels of masked patches from the visible ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.errors import ModelError
from pipeline.models.heads.base import HeadKind
from pipeline.models.heads.mae_decoder.shape import decoder_flops, decoder_parameters, decoder_values

if TYPE_CHECKING:
    from pipeline.models.heads.head import Head
    from pipeline.models.spec import HeadSpec, Pair, ViTSpec


class _MAEDecoder(HeadKind):
    """Its options are `dim`, its width, and `depth`, its layers. The task calls it, with the masks."""

    output = "pixels"
    dropped = True
    vectors = ("mask_token",)

    def check(self, spec: HeadSpec, backbone: ViTSpec) -> None:
        dim, depth = spec.options["dim"], spec.options["depth"]
        if dim < 4 or dim % 4:
            raise ModelError(
                f"decoder: sine-cosine positions need a width divisible by 4, found {dim}; use a multiple of 4 for "
                "decoder.dim"
            )
        if depth < 1:
            raise ModelError(f"decoder: a decoder needs at least one layer, found {depth}; raise decoder.depth")

    def reads(self, spec: HeadSpec, backbone: ViTSpec) -> None:
        return None

    def num_parameters(self, spec: HeadSpec, backbone: ViTSpec) -> int:
        return decoder_parameters(spec, backbone)

    def flops(self, spec: HeadSpec, backbone: ViTSpec, grid: Pair) -> int:
        """With all patches masked, the upper bound."""
        return decoder_flops(spec, backbone, visible=0, masked=grid[0] * grid[1])

    def kept_values(self, spec: HeadSpec, backbone: ViTSpec, grid: Pair) -> int:
        """With all patches masked, as in `flops`."""
        return decoder_values(spec, backbone, grid[0] * grid[1])

    def build(self, spec: HeadSpec, backbone: ViTSpec) -> Head:
        from pipeline.models.heads.mae_decoder.module import MAEDecoder

        return MAEDecoder(spec, backbone)


HEAD = _MAEDecoder()
