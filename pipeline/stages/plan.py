"""What a pipeline would do, as plain data: `planner` works it out, `plan_tables` shows it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline.forecast.hardware import Machine
from pipeline.forecast.stage import Forecast
from pipeline.models.spec import Pair
from pipeline.stages.balance import Balance
from pipeline.stages.folder import FINISHED
from pipeline.stages.memory import RankMemory

READY, TO_BE_MADE, MISSING = "ready", "will be made", "missing"


@dataclass(frozen=True)
class DatasetPlan:
    """A data set as it is on disk now; counts are None if there are no shards yet."""

    name: str
    shards: str
    state: str  # READY, TO_BE_MADE or MISSING
    num_shards: int | None = None
    samples: int | None = None
    bytes: int | None = None
    samples_per_shard: tuple[int, int] | None = None  # minimum and maximum
    classes: int | None = None
    digest: str | None = None
    problem: str | None = None  # why there is no index


@dataclass(frozen=True)
class TeacherPlan:
    """The frozen model that a stage learns from; its memory counts towards each rank's."""

    reference: str
    variant: str
    image_size: Pair
    parameters: int
    gflops: float  # forward pass of one image, in addition to the student's


@dataclass(frozen=True)
class ModelPlan:
    """A model that a stage may train: one, or one per branch that may become its starting point."""

    spec: dict[str, Any]
    parameters: int
    head_parameters: dict[str, int]  # the part in each head
    # Forward pass of one image, multiply-adds counted as two, by image size "HxW", or "HxW/PxQ" for another patch size.
    gflops: dict[str, float]
    memory: list[RankMemory]  # for ZeRO 0, 1, 2, 3
    starts_from: str | None
    surgeries: list[str]
    teacher: TeacherPlan | None = None
    frozen_parameters: int = 0  # the part that is not trained
    forecast: Forecast | None = None  # on the hardware that the plan is for, if any


@dataclass(frozen=True)
class TrainingPlan:
    """Amounts of one training branch; None if they depend on data that does not exist yet."""

    dataset: str
    duration: str
    samples: int | None
    steps: int | None
    epochs: float | None
    samples_per_epoch: int | None
    left_out_per_epoch: int | None
    lanes: int
    global_batch_size: int
    micro_batch_size: int
    world_size: int
    zero_stage: int
    precision: str
    image_sizes: list[Pair]
    balance: Balance
    models: list[ModelPlan]


@dataclass(frozen=True)
class StagePlan:
    """One branch. `status` is its state in the run folder, None if it has never begun.

    `runs_again` gives the reason if its inputs have changed since; its results would then be set aside.
    """

    id: str
    type: str
    depends_on: list[str]
    status: str | None
    training: TrainingPlan | None = None
    evaluates: int | None = None  # samples that each model of an evaluation or a probe sees
    runs_again: str | None = None

    @property
    def skipped(self) -> bool:
        return self.status == FINISHED and self.runs_again is None


@dataclass(frozen=True)
class Plan:
    name: str
    datasets: list[DatasetPlan]
    stages: list[StagePlan]
    notes: list[str] = field(default_factory=list)
    machine: Machine | None = None  # that training stages are forecast on, if any

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        plain = asdict(self)
        if self.machine:
            plain["machine"]["hardware"] = self.machine.hardware.model_dump()
        for stage, raw in zip(self.stages, plain["stages"], strict=True):
            raw["skipped"] = stage.skipped
            for model in (raw["training"] or {}).get("models", []):
                for memory in model["memory"]:
                    memory["total"] = sum(amount for key, amount in memory.items() if key != "zero_stage")
        return plain
