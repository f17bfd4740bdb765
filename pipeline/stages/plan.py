"""What a pipeline would do, worked out from its config and the indexes of its data; nothing is trained or started."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline.cluster.session import idle_gpus_here
from pipeline.config.data import DatasetConfig
from pipeline.config.schema import EvaluateStage, PipelineConfig, TrainStage
from pipeline.errors import ConfigError, DataError
from pipeline.models.costs import count_parameters, forward_flops
from pipeline.models.spec import Pair, ViTSpec, whole_patches
from pipeline.shards.index import DatasetIndex, load_index
from pipeline.shards.make import maker
from pipeline.stages.balance import Balance, balance
from pipeline.stages.folder import FINISHED, RunFolder
from pipeline.stages.memory import RankMemory, activation_bytes, rank_memory
from pipeline.stages.resolve import (
    Branch,
    check_channels,
    dependencies,
    reference_ids,
    source_spec,
    stage_branches,
    stage_image_sizes,
    stage_spec,
    surgeries,
    worker_resources,
)
from pipeline.train.schedule import micro_batches_at, step_shapes

MUCH_IDLE = 0.1  # share of a step that ranks may wait for the fullest one before the plan warns
READY, TO_BE_MADE, MISSING = "ready", "will be made", "missing"


@dataclass(frozen=True)
class DatasetPlan:
    """A data set as it is on disk now; counts are None where there are no shards yet."""

    name: str
    shards: str
    state: str  # READY, TO_BE_MADE or MISSING
    num_shards: int | None = None
    samples: int | None = None
    bytes: int | None = None
    samples_per_shard: tuple[int, int] | None = None  # least and most
    classes: int | None = None
    digest: str | None = None
    problem: str | None = None  # why there is no index


@dataclass(frozen=True)
class ModelPlan:
    """A model that a stage may train: one, or one per branch that may turn out the best to start from."""

    spec: dict[str, Any]
    parameters: int
    # Forward pass of one image, multiply-adds counted as two, by image size "HxW" or "HxW/PxQ" at another patch.
    gflops: dict[str, float]
    memory: list[RankMemory]  # for ZeRO 0, 1, 2, 3
    starts_from: str | None
    surgeries: list[str]


@dataclass(frozen=True)
class TrainingPlan:
    """Amounts of one training branch; None where they depend on data that is not there yet."""

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
    """One branch. `status` is what its run folder says of it, None if it has never begun."""

    id: str
    type: str
    depends_on: list[str]
    status: str | None
    training: TrainingPlan | None = None
    evaluates: int | None = None  # samples of an evaluate stage's data set

    @property
    def skipped(self) -> bool:
        return self.status == FINISHED


@dataclass(frozen=True)
class Plan:
    name: str
    datasets: list[DatasetPlan]
    stages: list[StagePlan]
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        plain = asdict(self)
        for stage, raw in zip(self.stages, plain["stages"], strict=True):
            raw["skipped"] = stage.skipped
            for model in (raw["training"] or {}).get("models", []):
                for memory in model["memory"]:
                    memory["total"] = sum(amount for key, amount in memory.items() if key != "zero_stage")
        return plain


def plan(config: PipelineConfig, world_size: int | None = None, statuses: Mapping[str, str] | None = None) -> Plan:
    """Work out every stage of a pipeline.

    `world_size` stands in for the number of workers that the config asks for. `statuses` maps branch ids to the states
    in their status.json. Raises ConfigError where a stage's settings do not make a model or fit its data.
    """
    check_channels(config)
    return _Planner(config, world_size, statuses or {}).plan()


def read_states(config: PipelineConfig) -> dict[str, str]:
    """Branch id -> state, for the branches that have begun in the pipeline's run folder."""
    folder = RunFolder(Path(config.runs_dir) / config.name)
    states = {branch.id: folder.stage(branch.id).status() for branch in stage_branches(config)}
    return {branch_id: status.state for branch_id, status in states.items() if status}


class _Planner:
    """Collects, branch by branch in their order, the models that later branches may start from."""

    def __init__(self, config: PipelineConfig, world_size: int | None, statuses: Mapping[str, str]) -> None:
        self.config, self.world_size, self.statuses = config, world_size, statuses
        self.indexes: dict[str, DatasetIndex] = {}
        self.specs: dict[str, dict[str, ViTSpec]] = {}  # branch id -> what it starts from ("" for nothing) -> its model
        self.notes: list[str] = []

    def plan(self) -> Plan:
        datasets = [self._dataset(name, dataset) for name, dataset in self.config.datasets.items()]
        stages = [self._stage(branch) for branch in stage_branches(self.config)]
        if idle := idle_gpus_here(self.config.cluster, worker_resources(self.config).values()):
            self.notes.append(f"{idle}.")
        return Plan(self.config.name, datasets, stages, list(dict.fromkeys(self.notes)))

    def _dataset(self, name: str, dataset: DatasetConfig) -> DatasetPlan:
        try:
            if dataset.make:
                maker(dataset.make)
        except DataError as error:
            raise ConfigError(f"datasets.{name}.make: {error}") from None
        try:
            index = self.indexes[name] = load_index(dataset.shards)
        except DataError as error:
            state = TO_BE_MADE if dataset.make else MISSING
            if state == MISSING:
                self.notes.append(f"datasets.{name}: {error}")
            return DatasetPlan(name, dataset.shards, state, classes=_num_classes(dataset, None), problem=str(error))
        counts = index.counts
        return DatasetPlan(
            name=name,
            shards=dataset.shards,
            state=READY,
            num_shards=len(counts),
            samples=index.num_samples,
            bytes=int(index.sizes.sum()),
            samples_per_shard=(int(counts.min()), int(counts.max())),
            classes=_num_classes(dataset, index),
            digest=index.digest,
        )

    def _stage(self, branch: Branch) -> StagePlan:
        stage, needed = branch.stage, dependencies(self.config, branch.id)
        status = self.statuses.get(branch.id)
        if isinstance(stage, TrainStage):
            return StagePlan(branch.id, stage.type, needed, status, training=self._training(branch, stage))
        index = self.indexes.get(stage.data) if isinstance(stage, EvaluateStage) else None
        return StagePlan(branch.id, stage.type, needed, status, evaluates=index.num_samples if index else None)

    def _training(self, branch: Branch, stage: TrainStage) -> TrainingPlan:
        indexes = [self.indexes[name] for name in stage.data.parts if name in self.indexes]
        ready = len(indexes) == len(stage.data.parts)
        samples_per_epoch = self._samples_per_epoch(branch, stage) if ready else None
        steps = self._steps(branch, stage, samples_per_epoch)
        samples = None if steps is None else steps * stage.global_batch_size
        ranks = self.world_size or self.config.resources(stage).max_workers
        mean_bytes = _mean_bytes(indexes, stage.data.weights) if ready else None
        shares = balance(stage, ranks, samples_per_epoch, mean_bytes, where=f"stages.{branch.stage_name}")
        if shares.idle_share > MUCH_IDLE:
            self.notes.append(
                f"stages.{branch.stage_name}.data.lanes: {stage.data.lanes} lanes share a batch of "
                f"{stage.global_batch_size} unevenly among {ranks} workers (per step {shares.step_samples[0]} to "
                f"{shares.step_samples[1]} samples); make both multiples of {ranks}."
            )
        return TrainingPlan(
            dataset=" + ".join(stage.data.parts),
            duration=str(stage.duration),
            samples=samples,
            steps=steps,
            epochs=samples / samples_per_epoch if samples is not None and samples_per_epoch else None,
            samples_per_epoch=samples_per_epoch,
            left_out_per_epoch=sum(index.num_samples for index in indexes) - samples_per_epoch
            if samples_per_epoch
            else None,
            lanes=stage.data.lanes,
            global_batch_size=stage.global_batch_size,
            micro_batch_size=min(stage.micro_batch_size or shares.step_samples[1], shares.step_samples[1]),
            world_size=ranks,
            zero_stage=stage.engine.zero_stage,
            precision=stage.engine.precision,
            image_sizes=stage_image_sizes(stage),
            balance=shares,
            models=self._models(branch, stage, ranks, shares),
        )

    def _samples_per_epoch(self, branch: Branch, stage: TrainStage) -> int:
        from pipeline.stream.source import Source, build_mixture  # imports OpenCV; a plan without data can do without

        sources = []
        for name, part in stage.data.parts.items():
            index = self.indexes[name]
            if index.num_samples < stage.data.lanes:
                raise ConfigError(
                    f"stages.{branch.stage_name}.data.lanes: found {stage.data.lanes}, but {name} has only "
                    f"{index.num_samples} samples; take at most that many lanes"
                )
            sources.append(Source(name, index, self.config.datasets[name], part.augment or stage.data.augment))
        try:
            return build_mixture(sources, stage.data, seed=0).epoch_slots
        except DataError as error:
            raise ConfigError(f"stages.{branch.stage_name}.{error}") from None

    def _steps(self, branch: Branch, stage: TrainStage, samples_per_epoch: int | None) -> int | None:
        if samples_per_epoch is None and stage.duration.unit == "epochs":
            return None
        steps = stage.duration.steps(samples_per_epoch or 0, stage.global_batch_size)
        warmup = stage.schedule.warmup
        if samples_per_epoch is not None or warmup.unit != "epochs":
            warmup_steps = warmup.steps(samples_per_epoch or 0, stage.global_batch_size)
            if warmup_steps >= steps:
                self.notes.append(
                    f"stages.{branch.stage_name}.schedule.warmup: its {warmup_steps} steps are not over before the "
                    f"{steps} steps of the stage; the learning rate never reaches optimizer.lr."
                )
        return steps

    def _models(self, branch: Branch, stage: TrainStage, ranks: int, shares: Balance) -> list[ModelPlan]:
        classes = self._classes(stage)
        if classes is None:
            names = " + ".join(stage.data.parts)
            self.notes.append(f"The classes of {names} are not known yet: heads are counted for one class.")
        found: dict[str, ViTSpec] = {}
        models = []
        for origin, source in self._sources(branch, stage).items():
            spec = stage_spec(branch, classes or 1, source)
            found[origin] = spec
            changes = surgeries(source, spec) if source else []
            models.append(_model(spec, stage, ranks, shares, origin or None, changes))
        self.specs[branch.id] = found
        return models

    def _classes(self, stage: TrainStage) -> int | None:
        """How many the data sets of a stage have together; equal names are one class."""
        names: set[str] = set()
        for name, part in stage.data.parts.items():
            known = class_names_of(self.config.datasets[name], self.indexes.get(name))
            if known is None:
                return None
            names.update(part.label_map.get(label, label) for label in known)
        return len(names)

    def _sources(self, branch: Branch, stage: TrainStage) -> dict[str, ViTSpec | None]:
        """The models that a branch may start from, by the id or path that has them."""
        if stage.init_from is None:
            return {"": None}
        candidates = reference_ids(self.config, stage.init_from)
        if not candidates:
            return {stage.init_from: source_spec(self.config, branch)}
        sources: dict[str, ViTSpec | None] = {}
        for candidate in candidates:
            for origin, spec in self.specs[candidate].items():
                # A candidate that may itself have several models is told apart by where those come from.
                several = len(self.specs[candidate]) > 1
                sources[f"{candidate} (from {origin})" if several else candidate] = spec
        return sources


def _model(
    spec: ViTSpec, stage: TrainStage, ranks: int, shares: Balance, origin: str | None, changes: list[str]
) -> ModelPlan:
    parameters = count_parameters(spec)
    share = shares.step_samples[1]
    activations = 0
    shapes = step_shapes(stage, spec)
    for size, patch in shapes:
        images = math.ceil(share / micro_batches_at(size, patch, spec, share, stage.micro_batch_size))
        activations = max(activations, activation_bytes(spec, images, whole_patches(size, patch), stage.engine))
    return ModelPlan(
        spec=spec.to_dict(),
        parameters=parameters,
        gflops={_shape(size, patch, spec): forward_flops(spec, size, patch) / 1e9 for size, patch in shapes},
        memory=rank_memory(parameters, stage, ranks, activations),
        starts_from=origin,
        surgeries=changes,
    )


def _shape(size: Pair, patch: Pair, spec: ViTSpec) -> str:
    size_text, patch_text = ("x".join(map(str, pair)) for pair in (size, patch))
    return size_text if patch == spec.patch else f"{size_text}/{patch_text}"


def _num_classes(dataset: DatasetConfig, index: DatasetIndex | None) -> int | None:
    classes = class_names_of(dataset, index)
    return None if classes is None else len(classes)


def class_names_of(dataset: DatasetConfig, index: DatasetIndex | None) -> list[str] | None:
    """As far as they are known; plain numbers where only the labels are."""
    classes = dataset.classes or (index.classes if index else None)
    if classes or not (index and index.label_range):
        return classes
    return [str(label) for label in range(index.label_range[1] + 1)]


def _mean_bytes(indexes: list[DatasetIndex], weights: list[int]) -> float:
    """Of a sample of a mixture."""
    means = [int(index.sizes.sum()) / index.num_samples for index in indexes]
    return sum(mean * weight for mean, weight in zip(means, weights, strict=True)) / sum(weights)
