from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from pipeline import load_model
from pipeline.export import export
from pipeline.models import Bundle, MiniViT


def test_export_loads_with_load_model(
    make_bundle: Callable[..., Bundle], model_of: Callable[[Bundle], MiniViT], tmp_path: Path
) -> None:
    bundle = make_bundle()
    path = export("safetensors", bundle, tmp_path / "out")
    images = torch.randn(2, 1, 28, 28)
    assert torch.equal(load_model(path)(images), model_of(bundle)(images))
