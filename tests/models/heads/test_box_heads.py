"""Tests of all heads that detect boxes."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pipeline.errors import ModelError
from pipeline.models import MiniViT, count_parameters, forward_flops
from pipeline.models.heads import head_kind
from pipeline.models.heads._boxes import BoxKind
from pipeline.models.heads.pyramid import levels
from pipeline.models.heads.queries.module import Denoising, QueriesHead
from pipeline.models.model_spec import ModelSpec
from pipeline.models.spec import HeadSpec
from pipeline.models.variants import build_backbone

K = 5
HEADS = {
    "queries": HeadSpec("queries", K, {"queries": 11}),
    "queries that denoise, two maps": HeadSpec(
        "queries", K, {"layers": [0, 2], "queries": 7, "depth": 2, "denoising": 1}
    ),
    "pyramid": HeadSpec("pyramid", K),
    "pyramid, finer, two maps": HeadSpec(
        "pyramid", K, {"finest": 1, "coarsest": 8, "hidden": 12, "depth": 1, "layers": [1, 2]}
    ),
}
Randomise = Callable[[nn.Module], None]


def spec_of(head: HeadSpec, **options: Any) -> ModelSpec:
    settings = {"image_size": (16, 24), "patch_size": 4, "depth": 3, "embed_dim": 32, "num_heads": 2}
    return ModelSpec(build_backbone("nano", **{**settings, **options}), {"box_head": head}, "detection")


def model_of(head: HeadSpec, randomise: Randomise, **options: Any) -> MiniViT:
    model = MiniViT.from_spec(spec_of(head, **options))
    randomise(model)
    return model.eval()


def images(height: int = 16, width: int = 24) -> torch.Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))


def noise(groups: list[list[int]]) -> Denoising:
    generator = torch.Generator().manual_seed(1)
    shape = len(groups), len(groups[0])
    boxes = torch.rand(*shape, 4, generator=generator) / 2 + 0.25
    return Denoising(boxes, torch.randint(K, shape, generator=generator), torch.tensor(groups))


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS.keys())
@pytest.mark.parametrize("options", [{}, {"registers": 2, "qk_norm": True, "layer_scale": 0.1}], ids=["plain", "more"])
def test_counts_are_those_of_the_module(head: HeadSpec, options: dict[str, Any]) -> None:
    spec = spec_of(head, **options)
    model = MiniViT.from_spec(spec, init="torch").eval()
    assert count_parameters(spec) == sum(parameter.numel() for parameter in model.parameters())
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(torch.zeros(1, 3, *spec.backbone.image_size))
    assert forward_flops(spec) == counter.get_total_flops()


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS.keys())
def test_candidates_are_boxes_and_logits_at_any_size(head: HeadSpec, randomise: Randomise) -> None:
    model, kind = model_of(head, randomise), head_kind(head.kind)
    assert isinstance(kind, BoxKind)
    for size in ((16, 24), (32, 20)):
        found = model(images(*size))
        assert found.shape[2] == 4 + K + (kind.matching == "one")
        assert found.dtype == torch.float32
        assert (found[..., 2:4] > 0).all(), "sides"
    assert model.bfloat16()(images().bfloat16()).isfinite().all()


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS.keys())
def test_every_parameter_learns(head: HeadSpec, randomise: Randomise) -> None:
    model = model_of(head, randomise, class_token=False)
    if "denoising" in head.options:
        box_head: Any = model.heads["box_head"]
        (*_, found) = box_head(model.features(images()), noise([[0, 1], [0, -1]]), True)
        assert found.shape[1] == 7 + 2
    else:
        found = model(images())
    found.square().mean().backward()
    idle = [name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert idle == []


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS.keys())
def test_rows_of_the_class_tensors_are_the_classes(head: HeadSpec, randomise: Randomise) -> None:
    model = model_of(head, randomise)
    before, order = model(images()), torch.tensor([3, 0, 4, 1, 2])
    with torch.no_grad():
        for name in head_kind(head.kind).class_tensors(head):
            tensor = model.heads["box_head"].get_parameter(name)
            assert tensor.shape[0] == K
            tensor.copy_(tensor[order].clone())
    after = model(images())
    torch.testing.assert_close(after[..., 4 : 4 + K], before[..., 4 + order])
    torch.testing.assert_close(after[..., :4], before[..., :4])


@pytest.mark.parametrize("init", ["mae", "timm", "torch"])
@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS.keys())
def test_a_new_head_finds_nothing_anywhere(head: HeadSpec, init: str) -> None:
    torch.manual_seed(0)
    found = MiniViT.from_spec(spec_of(head), init=init).eval()(images())
    logits = found[..., 4:]
    scores = logits.softmax(dim=2)[..., :-1].sum(dim=2) if head.kind == "queries" else logits.sigmoid()
    assert 0.2 < scores.mean() / (0.05 if head.kind == "queries" else 0.01) < 4
    middles = found[..., :2]
    assert (middles.amin(dim=1) < 0.35).all(), "boxes begin everywhere"
    assert (middles.amax(dim=1) > 0.6).all()


def test_denoising_queries_are_seen_by_their_own_group_alone(randomise: Randomise) -> None:
    model = model_of(HEADS["queries that denoise, two maps"], randomise)
    head: Any = model.heads["box_head"]
    assert isinstance(head, QueriesHead)
    features = model.features(images())
    given = noise([[0, 1, 0, 1], [0, 1, -1, -1]])
    alone, along = head(features, None, True), head(features, given, True)
    for one, other in zip(alone, along, strict=True):
        torch.testing.assert_close(one, other[:, :7])
    torch.testing.assert_close(alone[-1], model(images()))
    moved = given._replace(boxes=given.boxes.clone(), labels=given.labels.clone())
    moved.boxes[:, 1] *= 0.5
    moved.labels[:, 2:] = 0
    changed = [(a != b).any(dim=2) for a, b in zip(along, head(features, moved, True), strict=True)][-1]
    assert changed[0, 7:].tolist() == [True] * 4
    assert changed[1, 7:9].tolist() == [False, True], "padding is seen by nobody"


def test_places_lie_in_the_middle_of_the_patches(randomise: Randomise) -> None:
    head: Any = model_of(HEADS["pyramid, finer, two maps"], randomise).heads["box_head"]
    assert head.numbers == (2, 1, 0, -1)
    places = head.places((3, 5), torch.device("cpu"))
    assert len(places) == 15 * 16 + 15 * 4 + 15 + 2 * 3
    level = places[15 * 20 : 15 * 21]
    assert level[0].tolist() == pytest.approx([0.1, 1 / 6, 0.2, 1 / 3])
    assert level[-1, :2].tolist() == pytest.approx([0.9, 5 / 6])
    assert places[-1].tolist() == pytest.approx([1.0, 1.0, 0.4, 2 / 3]), "half of it lies beyond the image"


@pytest.mark.parametrize(
    ("patch", "expected"), [(16, (1, 0, -1)), (8, (0, -1, -2)), (14, (1, 0, -1)), (4, (-1, -2, -3))]
)
def test_strides_are_what_the_patch_allows(patch: int, expected: tuple[int, ...]) -> None:
    assert levels(HeadSpec("pyramid", K), build_backbone("nano", image_size=4 * patch, patch_size=patch)) == expected


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (HeadSpec("queries", 0), "a queries head has 0 outputs, but needs at least 1"),
        (HeadSpec("queries", K, {"hidden": 8}), "no option 'hidden'; allowed: layers, queries, depth, denoising"),
        (HeadSpec("pyramid", K, {"queries": 8}), "allowed: layers, finest, coarsest, hidden, depth"),
        (HeadSpec("pyramid", K, {"coarsest": 1, "finest": 1}), "no stride from finest 1 to coarsest 1 pixels"),
        (HeadSpec("pyramid", K, {"layers": [0, 1]}), "leave out the last layer 2"),
    ],
)
def test_impossible_heads_are_refused_in_a_sentence(head: HeadSpec, said: str) -> None:
    with pytest.raises(ModelError, match=re.escape(said)):
        spec_of(head, patch_size=8 if "finest" in head.options else 4, image_size=32)
