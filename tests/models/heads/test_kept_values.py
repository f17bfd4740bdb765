"""The values that heads keep for the backward pass, in closed form and as measured."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from pipeline.models.drop_path import sample_keys
from pipeline.models.heads import head_kind
from pipeline.models.heads.head import Features
from pipeline.models.heads.mae_decoder.shape import mae_decoder
from pipeline.models.masking import random_masking
from pipeline.models.spec import HeadSpec
from pipeline.models.variants import build_backbone

IMAGES, GRID = 3, (8, 8)
BACKBONE = build_backbone("nano", image_size=32, depth=3)
HEADS = {
    "linear": HeadSpec("linear", 5),
    "linear, two layers": HeadSpec("linear", 5, {"layers": [0, 2]}),
    "conv": HeadSpec("conv", 5),
    "conv, three layers": HeadSpec("conv", 5, {"layers": [0, 1, 2], "hidden": 64}),
    "dpt": HeadSpec("dpt", 5, {"hidden": 32}),
    "heat_maps": HeadSpec("heat_maps", 5),
    "mask_transformer": HeadSpec("mask_transformer", 5),
    "queries": HeadSpec("queries", 5),
    "pyramid": HeadSpec("pyramid", 5),
    "pyramid, finer": HeadSpec("pyramid", 5, {"finest": 2, "coarsest": 4, "hidden": 32}),
    "mae_decoder": mae_decoder(BACKBONE),
    "feature_projection": HeadSpec("feature_projection", 96),
}


@pytest.mark.parametrize("spec", HEADS.values(), ids=HEADS.keys())
def test_kept_values_are_about_those_that_wait_for_the_backward_pass(
    spec: HeadSpec, kept_bytes: Callable[..., int]
) -> None:
    kind = head_kind(spec.kind)
    head = kind.build(spec, BACKBONE)
    tokens = [torch.randn(IMAGES, 65, 64, requires_grad=True) for _ in range(3)]

    def call() -> None:
        if spec.kind == "feature_projection":
            head(tokens[-1] * 1.0)
        elif kind.reads(spec, BACKBONE) is None:
            masking = random_masking(sample_keys(0, torch.arange(IMAGES)), GRID, 0.75)
            head(tokens[-1][:, : 1 + masking.visible.shape[1]] * 1.0, masking, GRID, (4, 4))
        else:
            layers = {number: one * 1.0 for number, one in enumerate(tokens)}
            head(Features(layers[2], layers, GRID, 1))

    assert kept_bytes(head, call) / 4 == pytest.approx(IMAGES * kind.kept_values(spec, BACKBONE, GRID), rel=0.25)


def test_a_classifier_keeps_next_to_nothing() -> None:
    assert head_kind("classifier").kept_values(HeadSpec("classifier", 5), BACKBONE, GRID) == 0
