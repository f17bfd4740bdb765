from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from pydantic import ValidationError

from pipeline.config.export import GraphConfig
from pipeline.config.task import task_class
from pipeline.errors import ModelError
from pipeline.export import export, to_onnx
from pipeline.models import Bundle, MiniViT
from pipeline.models.model_spec import ModelSpec
from pipeline.models.spec import HeadSpec
from pipeline.tasks.pretrained import PretrainedMiniViT

onnxruntime = pytest.importorskip("onnxruntime")


def test_runtime_gives_the_same_outputs_for_any_batch_and_size(
    make_bundle: Callable[..., Bundle], model_of: Callable[[Bundle], MiniViT], tmp_path: Path
) -> None:
    """The graph interpolates positions as training does; opset and shapes are recorded."""
    bundle = make_bundle()
    path = export("onnx", bundle, tmp_path / "out", GraphConfig(opset=21))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for shape in ((1, 1, 28, 28), (5, 1, 56, 20)):
        images = torch.randn(shape)
        (logits,) = session.run(["logits"], {"images": images.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), model_of(bundle)(images), atol=1e-4, rtol=1e-4)
    assert not [node for node in path.parent.iterdir() if node.name.startswith(".draft")]
    described = json.loads((path.parent / "model.json").read_text())
    assert described["classes"] == ["ant", "bee", "cat"]
    shapes = {"inputs": {"images": ["batch", "1", "4*rows", "4*columns"]}, "outputs": ["logits"]}
    assert described["graphs"] == {"opset": 21, "model.onnx": shapes}
    found = onnx.load(path)
    assert (found.opset_import[0].version, found.metadata_props[0].value) == (21, "21")


def test_a_mask_comes_as_classes_of_pixels(make_bundle: Callable[..., Bundle], tmp_path: Path) -> None:
    """A graph with sliding windows has a fixed image size."""
    plain = make_bundle()
    settings = {"inference": {"size": 40, "stride": 12}}
    spec = task_class("segmentation")(**settings).model_spec(plain.spec.backbone, 3)
    bundle = Bundle(MiniViT.from_spec(spec).state_dict(), spec, plain.preprocess, None, {}, settings)
    session = onnxruntime.InferenceSession(export("onnx", bundle, tmp_path / "out"))
    images = torch.randn(3, 1, 40, 40)
    classes, logits = session.run(["class_map", "logits"], {"images": images.numpy()})
    with torch.no_grad():
        expected = PretrainedMiniViT.from_bundle(bundle).task_module().logits(images)
        full = torch.nn.functional.interpolate(expected, (40, 40), mode="bilinear").argmax(dim=1)
    torch.testing.assert_close(torch.from_numpy(logits), expected, atol=1e-4, rtol=1e-4)
    assert (torch.from_numpy(classes) == full).float().mean() > 0.999


@pytest.mark.parametrize("opset", [17, 24])
def test_an_opset_that_cannot_be_written_is_refused(opset: int) -> None:
    with pytest.raises(ValidationError, match="opset"):
        GraphConfig(opset=opset)


def test_a_runtime_that_lacks_the_opset_is_reported(tmp_path: Path) -> None:
    """The error for a graph with a later opset than any runtime supports."""
    value = onnx.helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["images"], ["y"])],
        "g",
        [value],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])],
    )
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 99)]), tmp_path / "m.onnx")
    with pytest.raises(
        ModelError, match=r"^onnx: onnxruntime \S+ cannot run the graph with opset 99 \(.*; set graph.o"
    ):
        to_onnx._run(tmp_path / "m.onnx", {"images": torch.zeros(1)}, 99)


def test_another_output_is_reported() -> None:
    assert to_onnx._alike(np.ones(3), np.ones(3))
    assert not to_onnx._alike(np.ones(3), np.ones(3) + 1e-3)
    assert not to_onnx._alike(np.ones(3), np.ones((3, 1)))
    assert not to_onnx._alike(np.array([1, 2]), np.array([1, 3]))


def test_outputs_are_named_by_the_heads_that_give_them(make_bundle: Callable[..., Bundle]) -> None:
    backbone, linear = make_bundle(dist_token=True).spec.backbone, HeadSpec("linear", 3)
    decoder = HeadSpec("mae_decoder", options={"dim": 32, "depth": 1})
    assert ModelSpec.classifier(backbone, 3).output_names == ("logits",)
    assert ModelSpec(backbone, {"head": linear}, "segmentation").output_names == ("logits",)
    assert ModelSpec(backbone, {"one": linear, "other": linear}, "several").output_names == ("one", "other")
    assert ModelSpec(backbone, {"decoder": decoder}, "mae").output_names == ("features",)


def rows_of(count: int) -> list[np.ndarray]:
    """Boxes, scores, best first, and classes of two images."""
    generator = np.random.default_rng(0)
    scores = -np.sort(-generator.random((2, count), np.float32), axis=1)
    return [generator.random((2, count, 4), np.float32), scores, generator.integers(5, size=(2, count))]


def test_rows_of_equal_scores_may_change_places_and_nothing_else() -> None:
    same = partial(to_onnx._same_rows, ("boxes", "scores", "classes"))
    rows = boxes, scores, classes = rows_of(50)
    order = np.arange(50)
    order[[7, 8]] = 8, 7
    swapped = boxes[:, order], scores, classes[:, order]
    assert same(rows, rows)
    assert not same(rows, swapped)
    scores[:, 7] = scores[:, 8]
    assert same(rows, swapped)
    assert same([x[:, :0] for x in rows], [x[:, :0] for x in rows])
    tied = boxes.copy()
    tied[:, -1] += 1  # another candidate with the score of the last one
    assert same(rows, [tied, scores, classes])
    wrong = boxes.copy()
    wrong[0, 3] += 1
    assert not same(rows, [wrong, scores, classes])
    assert not same(rows, [x[:, ::-1] for x in rows])
    assert not same(rows, [np.full_like(boxes, np.nan), scores, classes])
    assert not same(rows, [boxes[:, [0] * 50], scores, classes[:, [0] * 50]])
    assert not same(rows, [boxes[:1], scores[:1], classes[:1]])
