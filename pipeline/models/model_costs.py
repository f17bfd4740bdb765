"""Parameters and FLOPs of a whole model in closed form, without building it."""

from __future__ import annotations

from pipeline.models.costs import backbone_flops, backbone_parameters
from pipeline.models.heads import head_kind
from pipeline.models.model_spec import ModelSpec
from pipeline.models.spec import Pair, whole_patches


def count_parameters(spec: ModelSpec) -> int:
    """Trainable parameters, without sine-cosine positions."""
    return backbone_parameters(spec.backbone) + sum(head_parameters(spec, name) for name in spec.heads)


def head_parameters(spec: ModelSpec, name: str) -> int:
    """Trainable parameters of the named head."""
    head = spec.heads[name]
    return head_kind(head.kind).num_parameters(head, spec.backbone)


def forward_flops(spec: ModelSpec, image_size: Pair | None = None, patch: Pair | None = None) -> int:
    """FLOPs of the matrix products of one image's forward pass, as MiniViT executes it.

    A multiply and an add count as two. If the heads read only CLS, only its row of the last layer counts. Excludes
    norms, softmax and activations, as usual, and the resizing of positions and patch kernels, done once per batch.
    `image_size` and `patch` are (height, width) in pixels; default: the spec's.
    """
    backbone, reads = spec.backbone, spec.reads
    grid = whole_patches(image_size or backbone.image_size, patch or backbone.patch)
    heads = [(head_kind(head.kind), head) for head in spec.heads.values()]
    work = sum(kind.flops(head, backbone, grid) for kind, head in heads if kind.reads(head, backbone))
    return backbone_flops(backbone, image_size, patch, num_tokens=reads.num_tokens) + work
