"""Seconds to adapt a large state to another grid, patch and head."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch

from pipeline.models.minivit import MiniViT
from pipeline.models.surgery import adapt
from pipeline.models.variants import build_spec


def measure(variant: str, rounds: int) -> dict[str, Any]:
    """Median seconds of `adapt` from 224 px, patch 16, 1000 classes to 336 px, patch 14, 100 classes, in fp32."""
    old = build_spec(variant, image_size=224, patch_size=16, num_classes=1000)
    new = build_spec(variant, image_size=336, patch_size=14, num_classes=100)
    state = MiniViT.from_spec(old).state_dict()
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        adapted, _ = adapt(state, old, new)
        seconds.append(time.perf_counter() - began)
    with torch.device("meta"):
        MiniViT.from_spec(new, init="torch").load_state_dict(adapted, assign=True)
    return {
        "parameters": sum(tensor.numel() for tensor in state.values()),
        "grid": [old.backbone.grid, new.backbone.grid],
        "patch": [old.backbone.patch, new.backbone.patch],
        "classes": [old.num_classes, new.num_classes],
        "seconds": statistics.median(seconds),
        "rounds": seconds,
    }
