"""Compares the forecast of a step by `minivit plan --hardware cpu` with this machine: time and peak memory."""

from __future__ import annotations

import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from pipeline.bench.plan_process import MeasuredRank, measure_rank
from pipeline.config.train_stage import TrainStage
from pipeline.forecast.hardware import Hardware
from pipeline.forecast.stage import Forecast
from pipeline.forecast.this_cpu import this_cpu
from pipeline.models.model_spec import ModelSpec
from pipeline.models.variants import build_spec
from pipeline.stages.findings import Model
from pipeline.stages.forecast import Amounts, forecast_stage
from pipeline.stream.order import step_shares


@dataclass(frozen=True)
class PlanCase:
    """A classifier, its global batch and its ranks, each with one thread."""

    variant: str
    image_size: int
    batch_size: int
    precision: str
    ranks: int = 1
    zero_stage: int = 2

    @property
    def spec(self) -> ModelSpec:
        return build_spec(self.variant, image_size=self.image_size, num_classes=10 if self.image_size < 100 else 1000)

    @property
    def stage(self) -> TrainStage:
        settings = {
            "type": "pretrain",
            "model": {"variant": self.variant, "image_size": self.image_size},
            "data": {"train": "noise", "lanes": self.ranks},
            "duration": "1000 steps",
            "global_batch_size": self.batch_size,
            "ema": 0.999,
            "engine": {"precision": self.precision, "zero_stage": self.zero_stage},
        }
        return TrainStage.model_validate(settings)


FITTED = (  # the constants of `forecast.this_cpu` were fitted to these
    PlanCase("nano", 28, 128, "bf16"),
    PlanCase("nano", 28, 256, "fp32", ranks=2),
    PlanCase("micro", 28, 128, "bf16"),
    PlanCase("micro", 56, 64, "fp32"),
    PlanCase("tiny", 112, 32, "bf16"),
    PlanCase("tiny", 224, 16, "bf16"),
    PlanCase("tiny", 224, 16, "fp32", ranks=2, zero_stage=3),
    PlanCase("small", 224, 8, "bf16"),
    PlanCase("small", 224, 4, "fp32"),
    PlanCase("small", 224, 8, "bf16", ranks=2),
)
UNSEEN = (
    PlanCase("nano", 28, 256, "bf16"),
    PlanCase("nano", 56, 64, "fp32"),
    PlanCase("micro", 28, 64, "fp32"),
    PlanCase("micro", 56, 64, "bf16", ranks=2),
    PlanCase("tiny", 112, 16, "fp32"),
    PlanCase("tiny", 224, 8, "bf16"),
    PlanCase("tiny", 112, 64, "bf16", ranks=2, zero_stage=1),
    PlanCase("small", 112, 16, "bf16"),
    PlanCase("small", 224, 16, "bf16", ranks=2),
    PlanCase("base", 224, 4, "bf16"),
)
CASES = FITTED + UNSEEN


def measure(rounds: int, steps: int) -> dict[str, Any]:
    """Predicted and measured seconds and bytes of every case, and their ratios.

    Time is the CPU time of the slower rank's fastest step in any round, which other jobs on the machine disturb least;
    the forecast excludes loading and takes the fastest rate of a core that was measured in any round. Memory is a
    process's peak; `own` is the peak without the libraries, as measured before the model is built, and in the forecast
    without the overhead.
    """
    cores, found = [], []
    for _ in range(rounds):
        cores.append(this_cpu())
        found.append([train_case(case, steps) for case in CASES])
    hardware = max(cores, key=lambda core: core.fp32_tflops)
    best = [min(each, key=slowest_s) for each in zip(*found, strict=True)]
    return {
        "settings": {
            "rounds": rounds,
            "steps": steps,
            "gflops_per_s": [1000 * core.fp32_tflops for core in cores],
            "source": hardware.source,
        },
        "cases": [
            compare_forecast(case, predict(case, hardware), ranks, hardware) | {"fitted": case in FITTED}
            for case, ranks in zip(CASES, best, strict=True)
        ],
    }


def slowest_s(ranks: list[MeasuredRank]) -> float:
    """CPU seconds of the slowest rank's fastest step."""
    return max(rank.cpu_s for rank in ranks)


def predict(case: PlanCase, hardware: Hardware) -> Forecast:
    """The forecast of a case on ranks of one core."""
    stage = case.stage
    _, share = step_shares(stage.data.lanes, case.batch_size, case.ranks)
    amounts = Amounts(case.ranks, share, steps=1000, samples_per_epoch=None, mean_sample_bytes=None)
    model = Model(case.spec, None, (), {})
    return forecast_stage(model, stage, amounts, hardware.joined(1), None)


def train_case(case: PlanCase, steps: int) -> list[MeasuredRank]:
    """Train for a few steps with the engine, each rank in its own process."""
    with (
        tempfile.TemporaryDirectory() as scratch,
        ProcessPoolExecutor(case.ranks, get_context("spawn")) as pool,
    ):
        store = str(Path(scratch) / "store")
        ranks = [
            pool.submit(measure_rank, case.stage, case.spec, rank, case.ranks, store, steps)
            for rank in range(case.ranks)
        ]
        return [rank.result() for rank in ranks]


def compare_forecast(case: PlanCase, found: Forecast, ranks: list[MeasuredRank], hardware: Hardware) -> dict[str, Any]:
    """The figures of a case; a ratio is predicted divided by measured."""
    predicted_s = found.step.compute_s + found.step.exposed_s
    cpu_s, peak = slowest_s(ranks), max(rank.peak_bytes for rank in ranks)
    own = max(rank.peak_bytes - rank.bytes_before for rank in ranks)
    predicted_own = found.memory_bytes - hardware.overhead_gib * 2**30
    shape = f"{case.variant} {case.image_size} px, {case.batch_size} images"
    return {
        "case": f"{shape}, {case.precision}, ZeRO-{case.zero_stage}",
        "ranks": case.ranks,
        "predicted_s": predicted_s,
        "measured_s": cpu_s,
        "wall_s": max(rank.wall_s for rank in ranks),
        "ratio": predicted_s / cpu_s,
        "predicted_megabytes": found.memory_bytes / 1e6,
        "measured_megabytes": peak / 1e6,
        "memory_ratio": found.memory_bytes / peak,
        "own_megabytes": own / 1e6,
        "predicted_own_megabytes": predicted_own / 1e6,
    }
