from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline.export import export
from pipeline.models import Bundle, HeadSpec, MiniViT, ModelSpec


@pytest.mark.parametrize("image_size", [28, 56])
def test_loaded_graph_gives_the_same_logits_for_any_batch(
    make_bundle: Callable[..., Bundle], model_of: Callable[[Bundle], MiniViT], tmp_path: Path, image_size: int
) -> None:
    bundle = make_bundle(image_size=image_size)
    program = torch.export.load(export("torch-export", bundle, tmp_path / "out")).module()
    for batch in (1, 5):
        images = torch.randn(batch, 1, image_size, image_size)
        torch.testing.assert_close(program(images), model_of(bundle)(images), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("head", "shape"),
    [
        (HeadSpec("linear", 3), (2, 3, 7, 7)),
        (HeadSpec("mae_decoder", options={"dim": 32, "depth": 1}), (2, 50, 64)),
    ],
    ids=["dense", "features"],
)
def test_other_heads_are_exported_too(
    make_bundle: Callable[..., Bundle], tmp_path: Path, head: HeadSpec, shape: tuple[int, ...]
) -> None:
    """A head that the model calls is the output; a model without one gives its features."""
    plain = make_bundle()
    spec = ModelSpec(plain.spec.backbone, {"head": head}, "another")
    model = MiniViT.from_spec(spec).eval()
    bundle = Bundle(model.state_dict(), spec, plain.preprocess)
    program = torch.export.load(export("torch-export", bundle, tmp_path / "out")).module()
    images = torch.randn(2, 1, 28, 28)
    assert program(images).shape == shape
    torch.testing.assert_close(program(images), model(images), atol=1e-5, rtol=1e-5)
