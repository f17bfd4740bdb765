from __future__ import annotations

from typing import Any

import pytest

from pipeline.config.train_stage import TrainStage
from pipeline.models.costs import backbone_flops, layer_values
from pipeline.models.model_costs import forward_flops
from pipeline.models.variants import build_spec
from pipeline.stages.findings import Model
from pipeline.stages.memory import RankMemory
from pipeline.stages.step_work import kept_bytes, shape_shares, step_work

SPEC = build_spec("nano", image_size=28, channels=1, num_classes=10)
MODEL = Model(SPEC, None, (), {})
SHAPE = ((28, 28), (4, 4))
MEMORY = RankMemory(2, weights=1, gradients=2, optimizer=3, ema=4, activations=5)


def stage(**settings: Any) -> TrainStage:
    raw: dict[str, Any] = {
        "type": "pretrain",
        "model": {"variant": "nano", "image_size": 28, "channels": 1},
        "data": {"train": "train"},
        "duration": "60 steps",
        "global_batch_size": 64,
    }
    return TrainStage.model_validate(raw | settings)


def test_a_step_is_three_forward_passes() -> None:
    work = step_work(MODEL, stage(), 16, SHAPE, MEMORY)
    assert (work.samples, work.micro_batches, work.layers, work.width, work.state_bytes) == (16, 1, 4, 2, 10)
    assert work.forward_flops == 16 * forward_flops(SPEC)
    assert work.backward_flops == 2 * work.forward_flops
    assert work.kept_values == pytest.approx(16 * 50 * 4 * layer_values(SPEC.backbone), rel=0.01)
    assert work.scores == 16 * 4 * 2 * 50**2


def test_recomputing_everything_is_a_fourth() -> None:
    plain, full, selective = (
        step_work(MODEL, stage(engine={"activation_checkpointing": choice}), 16, SHAPE, MEMORY)
        for choice in ("none", "full", "selective")
    )
    assert full.backward_flops == 3 * plain.forward_flops
    assert plain.backward_flops < selective.backward_flops < full.backward_flops
    assert full.kept_values == pytest.approx(4 / 3 * plain.kept_values, rel=0.01)


def test_frozen_layers_have_no_backward_pass() -> None:
    half = step_work(MODEL, stage(init_from="other", optimizer={"freeze": 0.5}), 16, SHAPE, MEMORY)
    learned = forward_flops(SPEC) - backbone_flops(SPEC.backbone) / 2
    assert half.backward_flops == pytest.approx(16 * 2 * learned)
    assert half.forward_flops == 16 * forward_flops(SPEC)


def test_a_teachers_forward_pass_comes_on_top() -> None:
    taught = step_work(MODEL._replace(teacher=MODEL), stage(), 16, SHAPE, MEMORY)
    plain = step_work(MODEL, stage(), 16, SHAPE, MEMORY)
    assert taught.forward_flops == 2 * plain.forward_flops
    assert taught.backward_flops == plain.backward_flops
    assert taught.kept_values == pytest.approx(4 / 3 * plain.kept_values, rel=0.01)


def test_shapes_have_the_shares_of_their_steps() -> None:
    drawn = {"mode": "progressive", "sizes": [16, 28, 40]}
    shares = dict(shape_shares(MODEL, stage(resolution=drawn), 60))
    assert {size: share for ((size, _), _), share in shares.items()} == pytest.approx(
        dict.fromkeys((16, 28, 40), 1 / 3)
    )
    assert dict(shape_shares(MODEL, stage(), 60)) == {SHAPE: 1.0}
    many = dict(shape_shares(MODEL, stage(resolution=drawn | {"mode": "random"}), 100_000))
    assert sum(many.values()) == pytest.approx(1)
    assert min(many.values()) > 0.28


def test_smaller_micro_batches_keep_less() -> None:
    whole, half = (kept_bytes(MODEL, stage(micro_batch_size=size), 16, 4)[0] for size in (None, 8))
    assert whole == 2 * half
