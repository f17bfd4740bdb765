"""What the formats of other libraries cannot hold, besides what their models cannot express. Needs no torch."""

from __future__ import annotations

from pipeline.config.data import PlainConfig
from pipeline.errors import ModelError
from pipeline.models.expressible import check_tower, text_head
from pipeline.models.heads.text_tower.shape import TEMPERATURE
from pipeline.models.model_spec import ModelSpec
from pipeline.models.spec import Pair

FILTERS = ("auto", "bilinear", "bicubic")  # torchvision, which `transformers` uses, differs from Pillow in others


def check_open_clip(spec: ModelSpec) -> None:
    """Raise `ModelError` if open_clip has no such model."""
    text_head(spec, "open_clip")
    check_tower(spec.backbone)
    if spec.backbone.channels != 3:
        raise ModelError(f"model.channels: found {spec.backbone.channels}, but open_clip's image tower has 3")


def check_hf_clip(spec: ModelSpec) -> None:
    """Raise `ModelError` if `transformers` has no such model."""
    text_head(spec, "CLIPModel")
    check_tower(spec.backbone)
    if "bias" in spec.heads[TEMPERATURE].options:
        raise ModelError("task.loss: found sigmoid, but a CLIPModel cannot hold its bias; export to open-clip")
    for name in ("image_size", "patch"):
        height, width = getattr(spec.backbone, name)
        if height != width:
            raise ModelError(f"model.{name}: found {height} x {width}, but a CLIPModel only supports squares")


def check_hf_images(how: PlainConfig, size: Pair) -> None:
    """Raise `ModelError` if no `transformers` processor resizes images to that size in this way."""
    if how.resize == "pad":
        raise ModelError("eval.resize: found pad, but transformers' image processors squash or crop")
    if how.resize == "shorter" and size[0] != size[1]:
        raise ModelError(
            f"eval.resize: found shorter for images of {size[0]} x {size[1]}, but transformers' image processors crop "
            "squares"
        )
    if how.interpolation not in FILTERS:
        raise ModelError(
            f"eval.interpolation: found {how.interpolation}, but transformers' image processors only match "
            f"{' and '.join(FILTERS[1:])}"
        )
