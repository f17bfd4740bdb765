"""The MiniViT family. Names load on first use, so specs and plans do not pay for importing torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.models.bundle import Bundle, Preprocess, load_bundle
    from pipeline.models.minivit import MiniViT
    from pipeline.models.model_costs import count_parameters, forward_flops
    from pipeline.models.model_spec import ModelSpec
    from pipeline.models.spec import HeadSpec, TokenSchema, ViTSpec
    from pipeline.models.surgery import adapt
    from pipeline.models.surgery_report import SurgeryReport
    from pipeline.models.variants import VARIANTS, build_backbone, build_spec

HOMES = {
    "Bundle": "bundle",
    "Preprocess": "bundle",
    "load_bundle": "bundle",
    "count_parameters": "model_costs",
    "forward_flops": "model_costs",
    "MiniViT": "minivit",
    "HeadSpec": "spec",
    "ModelSpec": "model_spec",
    "TokenSchema": "spec",
    "ViTSpec": "spec",
    "adapt": "surgery",
    "SurgeryReport": "surgery_report",
    "VARIANTS": "variants",
    "build_backbone": "variants",
    "build_spec": "variants",
}

__all__ = [
    "VARIANTS",
    "Bundle",
    "HeadSpec",
    "MiniViT",
    "ModelSpec",
    "Preprocess",
    "SurgeryReport",
    "TokenSchema",
    "ViTSpec",
    "adapt",
    "build_backbone",
    "build_spec",
    "count_parameters",
    "forward_flops",
    "load_bundle",
]


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{HOMES[name]}"), name)
