from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline.export import export
from pipeline.export.files import output_names
from pipeline.models import Bundle, MiniViT
from pipeline.models.spec import HeadSpec, ModelSpec

onnxruntime = pytest.importorskip("onnxruntime")


@pytest.mark.parametrize("image_size", [28, 56])
def test_runtime_gives_the_same_logits_for_any_batch(
    make_bundle: Callable[..., Bundle], model_of: Callable[[Bundle], MiniViT], tmp_path: Path, image_size: int
) -> None:
    """At 56 px the positions of the 28 px grid are baked in, resized as training resizes them."""
    bundle = make_bundle(image_size=image_size)
    path = export("onnx", bundle, tmp_path / "out")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch in (1, 5):
        images = torch.randn(batch, 1, image_size, image_size)
        (logits,) = session.run(["logits"], {"images": images.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), model_of(bundle)(images), atol=1e-4, rtol=1e-4)
    assert not [node for node in path.parent.iterdir() if node.name.startswith(".draft")]
    assert json.loads((path.parent / "model.json").read_text())["classes"] == ["ant", "bee", "cat"]


def test_outputs_are_named_by_the_heads_that_give_them(make_bundle: Callable[..., Bundle]) -> None:
    backbone, linear = make_bundle(dist_token=True).spec.backbone, HeadSpec("linear", 3)
    decoder = HeadSpec("mae_decoder", options={"dim": 32, "depth": 1})
    assert output_names(ModelSpec.classifier(backbone, 3)) == ["logits"]
    assert output_names(ModelSpec(backbone, {"head": linear}, "segmentation")) == ["logits"]
    assert output_names(ModelSpec(backbone, {"one": linear, "other": linear}, "several")) == ["one", "other"]
    assert output_names(ModelSpec(backbone, {"decoder": decoder}, "mae")) == ["features"]
