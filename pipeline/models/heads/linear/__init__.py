"""Linear outputs per patch: the simplest dense head, and the usual probe of a backbone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.models.heads._layers import CellKind

if TYPE_CHECKING:
    from pipeline.models.heads.head import Head
    from pipeline.models.spec import HeadSpec, ViTSpec


class _Linear(CellKind):
    """LayerNorm and a 1x1 convolution."""

    def build(self, spec: HeadSpec, backbone: ViTSpec) -> Head:
        from pipeline.models.heads.linear.module import LinearHead

        return LinearHead(spec, backbone)


HEAD = _Linear()
