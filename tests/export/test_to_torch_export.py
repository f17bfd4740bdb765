from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline.export import export
from pipeline.models import Bundle, MiniViT


@pytest.mark.parametrize("image_size", [28, 56])
def test_loaded_graph_gives_the_same_logits_for_any_batch(
    make_bundle: Callable[..., Bundle], model_of: Callable[[Bundle], MiniViT], tmp_path: Path, image_size: int
) -> None:
    bundle = make_bundle(image_size=image_size)
    program = torch.export.load(export("torch-export", bundle, tmp_path / "out")).module()
    for batch in (1, 5):
        images = torch.randn(batch, 1, image_size, image_size)
        torch.testing.assert_close(program(images), model_of(bundle)(images), atol=1e-5, rtol=1e-5)
