"""What Vision Transformers of other libraries can express: what a model must be to be converted. Needs no torch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from pipeline.errors import ModelError
from pipeline.models.heads.text_tower.shape import TEXT
from pipeline.models.model_spec import ModelSpec
from pipeline.models.spec import HeadSpec, ViTSpec

# For timm's plain models, and for those with a norm before the encoder, which are CLIP's.
TIMM_EPS, CLIP_EPS = 1e-6, 1e-5

HFLayout = Literal["vit", "deit", "dinov2", "dinov2_with_registers"]


def bare_spec(spec: ViTSpec) -> ViTSpec:
    """Spec of the backbone that `bare_backbone` returns."""
    if not spec.tokens.dist:
        return spec
    return replace(spec, tokens=replace(spec.tokens, dist=False, registers=spec.tokens.registers + 1))


def check_timm(model: ModelSpec) -> None:
    """Raise `ModelError`, naming the field, if timm's Vision Transformer cannot express this model."""
    model.require_classifier("timm's ViT", or_backbone=True)
    spec = model.backbone if model.is_classifier else bare_spec(model.backbone)
    kind = "CLIP's ViT" if spec.embed_norm else "ViT"
    allowed: dict[str, tuple[Any, ...]] = {
        "norm": ("pre",),
        "activation": ("gelu", "quick_gelu") if spec.embed_norm else ("gelu",),
        "eps": (CLIP_EPS if spec.embed_norm else TIMM_EPS,),
    }
    for name, values in allowed.items():
        if getattr(spec, name) not in values:
            raise ModelError(
                f"model.{name}: found {getattr(spec, name)}, but timm's {kind} has {' or '.join(map(str, values))}; "
                "export to another format"
            )
    if spec.windows is not None:
        raise ModelError("model.windows: timm's ViT has none; export to another format, or set windows: none")
    if spec.tokens.dist and spec.embed_norm:
        raise ModelError("model.embed_norm: timm's distilled ViT has none; drop the distillation token to export")
    if spec.tokens.dist and spec.tokens.registers:
        raise ModelError(
            "model.registers: timm's distilled ViT has none; drop them or the distillation token to export"
        )


def check_clip(model: ModelSpec) -> None:
    """Raise `ModelError`, naming the field, if CLIP's vision tower cannot express this model."""
    model.require_classifier("CLIP's vision tower")
    check_tower(model.backbone)
    if model.backbone.eps != CLIP_EPS:
        raise ModelError(f"model.eps: found {model.backbone.eps}, but CLIP's vision tower has {CLIP_EPS}")


def check_tower(spec: ViTSpec) -> None:
    """Raise `ModelError`, naming the field, if CLIP's image tower, with any eps, cannot express this backbone."""
    wanted = {"norm": "pre", "embed_norm": True, "pool": "cls", "qk_norm": False, "layer_scale": None, "windows": None}
    for name, value in wanted.items():
        if getattr(spec, name) != value:
            raise ModelError(f"model.{name}: found {getattr(spec, name)}, but CLIP's vision tower has {value}")
    if spec.activation == "relu":
        raise ModelError("model.activation: found relu, but CLIP's vision tower has quick_gelu or gelu")
    if spec.tokens.registers or spec.tokens.dist:
        raise ModelError("model.registers: CLIP's vision tower has no tokens besides CLS; drop them to export")


def text_head(model: ModelSpec, form: str) -> HeadSpec:
    """Returns the text tower of a model. Raises `ModelError` unless it has an image and a text tower."""
    if {head.kind for head in model.heads.values()} != {"embedding", "text_tower", "temperature"}:
        raise ModelError(
            f"heads: {form} needs an image tower and a text tower, but this {model.task} model does not have both; "
            "train it with the task clip, or export to another format"
        )
    return model.heads[TEXT]


def hf_layout(model: ModelSpec) -> HFLayout:
    """Returns the `transformers` architecture for a model: a classifier, or a backbone without one (DINOv2).

    Raises `ModelError` if there is none.
    """
    model.require_classifier("transformers' ViT", or_backbone=True)
    spec, classifier = model.backbone, model.is_classifier
    _check_backbone(spec, classifier)
    if classifier and spec.tokens.dist:
        if spec.tokens.registers:
            raise ModelError("model.registers: transformers' DeiT has none besides its distillation token")
        return "deit"
    registers = spec.tokens.registers + int(spec.tokens.dist)
    why_not = _unlike_dinov2(spec)
    if registers or not classifier:
        if why_not:
            kind = "registers" if registers else "no classifier"
            raise ModelError(f"{why_not}; transformers' DINOv2, its only ViT with {kind}, does not support that")
        return "dinov2_with_registers" if registers else "dinov2"
    return "dinov2" if spec.layer_scale is not None and not why_not else "vit"


def _check_backbone(spec: ViTSpec, classifier: bool) -> None:
    """Raise `ModelError` for features that none of the architectures has."""
    kind = "transformers' ViT"
    if spec.norm != "pre":
        raise ModelError(f"model.norm: found {spec.norm}, but {kind} has pre")
    if not spec.tokens.cls:
        raise ModelError(f"model.class_token: found false, but {kind} has one")
    if classifier and spec.pool != "cls":
        raise ModelError(f"model.pool: found {spec.pool}, but the classifier of {kind} reads cls")
    for name in ("qk_norm", "embed_norm", "windows"):
        if getattr(spec, name):
            raise ModelError(f"model.{name}: is set, but {kind} has none")


def _unlike_dinov2(spec: ViTSpec) -> str | None:
    """Returns why DINOv2 cannot express a backbone; None if it can."""
    for name in ("image_size", "patch"):
        height, width = getattr(spec, name)
        if height != width:
            return f"model.{name}: found {height} x {width}, expected a square"
    if spec.mlp_dim % spec.embed_dim:
        return f"model.mlp_dim: found {spec.mlp_dim}, expected a multiple of the width {spec.embed_dim}"
    return None
