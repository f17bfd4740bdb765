from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.train_stage import TrainStage
from pipeline.config.training import EngineConfig
from pipeline.models.costs import layer_parameters
from pipeline.models.model_costs import count_parameters
from pipeline.models.variants import build_spec
from pipeline.stages.memory import activation_bytes, rank_memory, teacher_bytes
from pipeline.tasks.lejepa import Task as LeJEPA
from pipeline.tasks.simdino import Task as SimDINO


def stage(precision: str = "bf16", optimizer: str = "adamw", ema: float | None = None) -> TrainStage:
    raw: dict[str, Any] = {
        "type": "pretrain",
        "model": {"variant": "nano"},
        "data": {"train": "train"},
        "duration": "1 epochs",
        "global_batch_size": 64,
        "optimizer": {"name": optimizer},
        "engine": {"precision": precision},
        "ema": ema,
    }
    return TrainStage.model_validate(raw)


def test_the_papers_example() -> None:
    """ZeRO, figure 1: 7.5 B parameters on 64 ranks with Adam take 120, 31.4, 16.6 and 1.9 GB.

    Our gradients take two bytes more of each, wherever they are.
    """
    memories = rank_memory(7_500_000_000, stage(), 64, 0)
    assert [memory.gradients / 1e9 for memory in memories] == pytest.approx([30, 30, 0.47, 0.47], abs=0.01)
    totals = [(memory.total - memory.gradients / 2) / 1e9 for memory in memories]
    assert totals == pytest.approx([120, 31.4, 16.6, 1.9], abs=0.06)


@pytest.mark.parametrize(
    ("precision", "optimizer", "ema", "plain", "partitioned"),
    [
        ("bf16", "adamw", None, 18, 18),
        ("fp32", "adamw", None, 16, 20),
        ("bf16", "sgd", None, 14, 14),
        ("fp32", "sgd", 0.9, 16, 20),
    ],
)
def test_bytes_per_parameter_on_one_rank(
    precision: str, optimizer: str, ema: float | None, plain: int, partitioned: int
) -> None:
    """Without ZeRO, and with any stage of it."""
    totals = [memory.total for memory in rank_memory(1000, stage(precision, optimizer, ema), 1, 0)]
    assert totals == [1000 * plain, *[1000 * partitioned] * 3]


def test_the_average_that_a_moving_teacher_is_made_of_is_shared_out() -> None:
    plain, taught = (
        rank_memory(1000, stage().model_copy(update={"task": task}), 4, 0, 7) for task in (LeJEPA(), SimDINO())
    )
    assert [memory.teacher for memory in plain] == [7, 7, 7, 7]
    assert [memory.teacher for memory in taught] == [4007, 1007, 1007, 1007]
    assert [a.total - b.total for a, b in zip(taught, plain, strict=True)] == [4000, 1000, 1000, 1000]


def test_a_teacher_is_whole_on_every_rank() -> None:
    without, taught = rank_memory(1000, stage(), 8, 5), rank_memory(1000, stage(), 8, 5, 77)
    assert [one.total + 77 for one in without] == [one.total for one in taught]


def test_a_teacher_takes_its_weights_and_one_layer_of_its_images() -> None:
    spec = build_spec("nano", image_size=28, channels=1, num_classes=10)
    of_one, of_three = (teacher_bytes(spec, images, EngineConfig()) for images in (1, 3))
    per_image = 4 * 28 * 28 + 2 * 50 * (2 * 64 + 2 * 256)
    assert of_three - of_one == 2 * per_image
    assert of_one - per_image == 2 * count_parameters(spec)


def test_a_sharded_teacher_takes_its_share_and_two_layers() -> None:
    spec = build_spec("nano", image_size=28, channels=1, num_classes=10)
    whole, share = (teacher_bytes(spec, 1, EngineConfig(), ranks) for ranks in (1, 4))
    parameters = count_parameters(spec)
    assert whole - share == 2 * (parameters - -(-parameters // 4) - 2 * layer_parameters(spec.backbone))


@given(st.integers(1, 10**10), st.integers(1, 4096))
def test_a_higher_stage_never_takes_more_and_the_ranks_hold_everything(parameters: int, ranks: int) -> None:
    by_stage = rank_memory(parameters, stage(ema=0.99), ranks, 5)
    totals = [memory.total for memory in by_stage]
    assert totals == sorted(totals, reverse=True)
    assert (by_stage[3].total - 5) * ranks >= parameters * 20
    assert [memory.activations for memory in by_stage] == [5] * 4
    assert by_stage[0].ema == parameters * 4
    assert [memory.ema for memory in by_stage[1:]] == [-(-parameters * 4 // ranks)] * 3


def test_activations_by_hand() -> None:
    """16 bits: 8 D + 2 M values per token and layer, and a float per head."""
    spec = build_spec("nano", image_size=28, channels=1, num_classes=10)
    half, full = EngineConfig(precision="bf16"), EngineConfig(precision="fp32")
    per_token = 2 * (8 * 64 + 2 * 256) + 4 * 2
    assert activation_bytes(spec.backbone, 3 * 50, half) == 3 * (49 + 1) * 4 * per_token
    assert activation_bytes(spec.backbone, 3 * 99, half) == 3 * (98 + 1) * 4 * per_token
    assert activation_bytes(spec.backbone, 50, full) == 50 * 4 * (4 * (8 * 64 + 2 * 256) + 4 * 2)


def test_frozen_parameters_take_their_weights_alone() -> None:
    for precision, width in (("bf16", 2), ("fp32", 4)):
        everything, some = (rank_memory(1000, stage(precision, ema=0.9), 2, 5, frozen=frozen) for frozen in (0, 600))
        trained = rank_memory(400, stage(precision, ema=0.9), 2, 5)
        for whole, half, without in zip(everything, some, trained, strict=True):
            assert half.weights == whole.weights
            assert half.total - half.weights == without.total - without.weights
            assert half.weights - without.weights == 600 * width // (2 if half.zero_stage == 3 else 1)


@pytest.mark.parametrize("choice", ["none", "selective", "full"])
def test_frozen_layers_keep_nothing(choice: str) -> None:
    spec = build_spec("nano", image_size=28, channels=1, num_classes=10).backbone
    shallow = build_spec("nano", image_size=28, channels=1, num_classes=10, depth=1).backbone
    engine = EngineConfig(activation_checkpointing=choice)
    assert activation_bytes(spec, 50, engine, frozen_layers=3) == activation_bytes(shallow, 50, engine)
    assert activation_bytes(spec, 50, engine, frozen_layers=4) == 0


def test_checkpointed_activations_by_hand() -> None:
    """Four layers keep seven values per channel and token, or one; one layer has all while it is computed again."""
    spec = build_spec("nano", image_size=28, channels=1, num_classes=10)
    selective, full = (
        EngineConfig(precision="fp32", activation_checkpointing=choice) for choice in ("selective", "full")
    )
    attention, feed_forward = 4 * 7 * 64 + 4 * 2, 4 * (64 + 2 * 256)
    assert activation_bytes(spec.backbone, 50, selective) == 50 * (4 * attention + feed_forward)
    assert activation_bytes(spec.backbone, 50, full) == 50 * (4 * 4 * 64 + attention + feed_forward)
