from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.train_stage import TrainStage
from pipeline.config.training import LARGEST_BUCKET
from pipeline.forecast.known_hardware import KNOWN
from pipeline.models.model_costs import count_parameters
from pipeline.models.variants import build_spec
from pipeline.stages.findings import Model
from pipeline.stages.forecast import COPIES_OF_ZERO_3, Amounts, checkpoint_bytes, forecast_stage, rank_bytes

H100 = KNOWN["h100"]
LARGE = Model(build_spec("large", image_size=224, num_classes=1000), None, (), {})
PARAMETERS = count_parameters(LARGE.spec)


def stage(**settings: Any) -> TrainStage:
    raw: dict[str, Any] = {
        "type": "pretrain",
        "model": {"variant": "large"},
        "data": {"train": "train", "lanes": 1024},
        "duration": "100 epochs",
        "global_batch_size": 4096,
    }
    return TrainStage.model_validate(raw | settings)


def amounts(ranks: int, **changed: Any) -> Amounts:
    known = Amounts(ranks, -(-4096 // ranks), 1000, 40_000, 100_000.0)
    return known._replace(**changed)


def test_a_checkpoint_holds_what_the_optimiser_needs() -> None:
    assert checkpoint_bytes(stage(), 1000, 1000) == 12_000
    assert checkpoint_bytes(stage(ema=0.99), 1000, 1000) == 16_000
    assert checkpoint_bytes(stage(optimizer={"name": "sgd"}), 600, 1000) == 600 * 8 + 400 * 2


def test_memory_adds_buffers_and_overhead_to_what_the_plan_counts() -> None:
    two, three = (rank_bytes(LARGE, stage(engine={"zero_stage": zero}), amounts(64), H100) for zero in (2, 3))
    whole = PARAMETERS * 2
    assert two > 2 * LARGEST_BUCKET * 4 + 2 * 2**30 + whole
    shares = -(-whole // 64)  # of the weights, which DeepSpeed leaves gathered besides
    assert three - two == shares + COPIES_OF_ZERO_3 * LARGEST_BUCKET * 4


@given(st.integers(1, 512), st.integers(1, 512), st.integers(1, 3))
def test_memory_falls_with_ranks_under_zero(ranks: int, more: int, zero: int) -> None:
    """From two ranks on: a second one needs a second buffer."""
    few, many = (
        rank_bytes(LARGE, stage(engine={"zero_stage": zero}, micro_batch_size=1), amounts(count), H100)
        for count in (ranks + 1, ranks + 1 + more)
    )
    assert many <= few


def test_what_does_not_fit_names_the_largest_micro_batch_that_does() -> None:
    found = forecast_stage(LARGE, stage(), amounts(4), H100, None)
    assert (found.fits, found.limited_by, len(found.remedies)) == (False, "memory", 1)
    size = int(found.remedies[0].removeprefix("micro_batch_size: "))
    larger = -(-1024 // (1024 // size - 1)) if size <= 512 else 1024
    fits = [
        rank_bytes(LARGE, stage(micro_batch_size=each), amounts(4), H100) <= H100.memory_bytes
        for each in (size, larger)
    ]
    assert fits == [True, False]
    assert forecast_stage(LARGE, stage(micro_batch_size=size), amounts(4), H100, None).fits


def test_a_higher_zero_stage_is_a_remedy_too() -> None:
    small = H100.model_copy(update={"memory_gib": 3.5})
    found = forecast_stage(LARGE, stage(engine={"zero_stage": 1}, micro_batch_size=1), amounts(64), small, None)
    assert found.remedies == ["engine.zero_stage: 2"]
    both = forecast_stage(LARGE, stage(engine={"zero_stage": 1}), amounts(64), small, None)
    assert both.remedies[0].endswith("with engine.zero_stage: 2")
    tiny = H100.model_copy(update={"memory_gib": 1.0})
    assert forecast_stage(LARGE, stage(), amounts(64), tiny, None).remedies == []


def test_the_interval_is_the_configs() -> None:
    """An epoch, or ten minutes if these are over first."""
    often = forecast_stage(LARGE, stage(checkpoint={"every": "3 steps"}), amounts(512), H100, 1000)
    assert often.failures is not None
    assert often.failures.interval_s == pytest.approx(max(3 * often.step_s, often.save_s))
    rarely = forecast_stage(LARGE, stage(checkpoint={"every": "100 epochs"}), amounts(8), H100, 1000)
    assert rarely.failures is not None
    assert rarely.failures.interval_s == 600


def test_unknown_data_leaves_the_length_open() -> None:
    unknown = amounts(8, steps=None, samples_per_epoch=None, mean_sample_bytes=None)
    found = forecast_stage(LARGE, stage(checkpoint={"every_minutes": None}), unknown, H100, 1000)
    assert (found.days, found.failures) == (None, None)
    assert found.images_per_s > 0
    assert found.decode_s == pytest.approx(1e-4 + 12.8e-9 * 110_000 + 13e-9 * 224 * 224)


def test_a_vit_b_uses_a_usual_share_of_a_gpu() -> None:
    """The passes over memory leave 30 to 50 % of an H100's and an A100's peak, by FLOPs of the model."""
    base = Model(build_spec("base", image_size=224, num_classes=1000), None, (), {})
    for name in ("h100", "a100"):
        found = forecast_stage(base, stage(micro_batch_size=128), amounts(8), KNOWN[name], None)
        flops_per_s = 512 * 3 * 35.1e9 / found.step.compute_s
        assert 0.3 < flops_per_s / (1e12 * KNOWN[name].bf16_tflops) < 0.5
