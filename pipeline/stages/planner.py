"""The amount of work in each stage of a pipeline, from the pre-flight check's findings and the data's indexes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from pipeline.cluster.resources import Resources, settle, this_machine
from pipeline.cluster.session import elsewhere, idle_gpus_here, missing_gpus_here
from pipeline.config.data import DatasetConfig
from pipeline.config.schema import PipelineConfig
from pipeline.config.stage import StageConfig
from pipeline.config.train_stage import TrainStage
from pipeline.errors import DataError
from pipeline.forecast.hardware import Hardware, Machine
from pipeline.models.costs import frozen_parameters
from pipeline.models.model_costs import count_parameters, forward_flops, head_parameters
from pipeline.models.model_spec import ModelSpec
from pipeline.models.spec import Pair, ViTSpec
from pipeline.shards.index import DatasetIndex
from pipeline.stages.balance import balance
from pipeline.stages.context import find_datasets, known_class_names
from pipeline.stages.data import epoch_samples
from pipeline.stages.findings import Findings, Model
from pipeline.stages.folder import RunFolder, Status
from pipeline.stages.forecast import Amounts, forecast_stage
from pipeline.stages.memory import rank_memory
from pipeline.stages.plan import (
    MISSING,
    READY,
    TO_BE_MADE,
    DatasetPlan,
    ModelPlan,
    Plan,
    StagePlan,
    TeacherPlan,
    TrainingPlan,
)
from pipeline.stages.preflight import preflight
from pipeline.stages.rerun import rerun_reasons
from pipeline.stages.resolve import (
    Branch,
    dependencies,
    describe_surgery,
    most_workers,
    on_workers,
    stage_branches,
    stage_image_sizes,
)
from pipeline.stages.stage_type import Known
from pipeline.stages.step_work import kept_bytes
from pipeline.tasks.task import task_of
from pipeline.train.job import Dataset
from pipeline.train.step_shapes import step_shapes

MUCH_IDLE = 0.1  # fraction of a step that ranks may wait for the busiest one before the plan warns


def plan(
    config: PipelineConfig,
    world_size: int | None = None,
    statuses: Mapping[str, Status] | None = None,
    machine: Machine | None = None,
) -> Plan:
    """Work out every stage of a pipeline.

    `world_size` overrides the number of workers in the config. `statuses` maps branch ids to their status.json. With a
    `machine`, training stages are forecast on it. Raises what `preflight` finds, as `run` does.
    """
    datasets, problems = find_datasets(config)
    findings = preflight(config, datasets)
    findings.refuse()
    return Planner(config, findings, datasets, problems, world_size, statuses or {}, machine).plan()


def read_statuses(config: PipelineConfig) -> dict[str, Status]:
    """Branch id -> status, for branches that have begun in the pipeline's run folder."""
    folder = RunFolder(Path(config.runs_dir) / config.name)
    statuses = {branch.id: folder.stage(branch.id).status() for branch in stage_branches(config)}
    return {branch_id: status for branch_id, status in statuses.items() if status}


class Planner:
    """Works out the amounts of each branch for the models that the pre-flight check found."""

    def __init__(
        self,
        config: PipelineConfig,
        findings: Findings,
        datasets: Mapping[str, Dataset],
        problems: Mapping[str, DataError],
        world_size: int | None,
        statuses: Mapping[str, Status],
        machine: Machine | None,
    ) -> None:
        self.config, self.findings, self.world_size, self.statuses = config, findings, world_size, statuses
        self.machine = machine
        self.datasets, self.problems = datasets, problems
        self.indexes = {name: dataset.index for name, dataset in datasets.items()}
        self.run_again = rerun_reasons(Known(config, datasets, findings.models), statuses)
        self.notes = [f"{branch_id}: runs again, because {reason}." for branch_id, reason in self.run_again.items()]

    def plan(self) -> Plan:
        datasets = [self._dataset(name, dataset) for name, dataset in self.config.datasets.items()]
        stages = [self._stage(branch) for branch in stage_branches(self.config)]
        workers = on_workers(self.config)
        if idle := idle_gpus_here(self.config.cluster, map(self._resources, workers.values())):
            self.notes.append(f"{idle}.")
        asked = {name: self.config.resources(stage) for name, stage in workers.items()}
        self.notes += [f"{missing}." for missing in missing_gpus_here(self.config.cluster, asked)]
        notes = list(dict.fromkeys([*self.findings.warnings, *self.notes]))
        return Plan(self.config.name, datasets, stages, notes, self.machine)

    def _dataset(self, name: str, dataset: DatasetConfig) -> DatasetPlan:
        if name in self.problems:
            error = self.problems[name]
            state = TO_BE_MADE if dataset.make else MISSING
            if state == MISSING:
                self.notes.append(f"datasets.{name}: {error}")
            lists = dataset.classes.values() if isinstance(dataset.classes, dict) else [dataset.classes or []]
            classes = max(map(len, lists)) or None
            return DatasetPlan(name, dataset.shards, state, classes=classes, problem=str(error))
        index = self.indexes[name]
        counts = index.counts
        return DatasetPlan(
            name=name,
            shards=dataset.shards,
            state=READY,
            num_shards=len(counts),
            samples=index.num_samples,
            bytes=int(index.sizes.sum()),
            samples_per_shard=(int(counts.min()), int(counts.max())),
            classes=max([len(known_class_names(name, self.datasets[name], kind)) for kind in index.members], default=0)
            or None,
            digest=index.digest,
        )

    def _stage(self, branch: Branch) -> StagePlan:
        stage, needed = branch.stage, dependencies(self.config, branch.id)
        status = self.statuses.get(branch.id)
        training = self._training(branch, stage) if isinstance(stage, TrainStage) else None
        return StagePlan(
            branch.id,
            stage.type,
            needed,
            status.state if status else None,
            training,
            evaluates=None if training else self._evaluated_samples(stage),
            runs_again=self.run_again.get(branch.id),
        )

    def _resources(self, stage: StageConfig) -> Resources:
        """The resources of a stage on this machine; a remote cluster cannot be asked in advance."""
        asked = self.config.resources(stage)
        settled = settle(asked, [this_machine()], most_workers(stage))
        address = elsewhere(self.config.cluster)
        if asked.workers == "auto" and address and not self.world_size:
            self.notes.append(
                f"cluster.workers: auto uses all of the cluster at {address}; this plan assumes {settled.max_workers} "
                "workers, as on this machine; set another number with --world-size."
            )
        return settled

    def _evaluated_samples(self, stage: StageConfig) -> int | None:
        """Samples that each model of an evaluation or a probe sees; None if unknown, or if the stage reads no data."""
        names = stage.data_read.values()
        known = [self.indexes[name].num_samples for name in names if name in self.indexes]
        return sum(known) if known and len(known) == len(names) else None

    def _training(self, branch: Branch, stage: TrainStage) -> TrainingPlan:
        indexes = [self.indexes[name] for name in stage.data.parts if name in self.indexes]
        samples_per_epoch = epoch_samples(self.config, stage, self.indexes)
        steps = self._steps(branch, stage, samples_per_epoch)
        samples = None if steps is None else steps * stage.global_batch_size
        ranks = self._ranks(stage)
        mean_bytes = None if samples_per_epoch is None else _mean_bytes(indexes, stage.data.weights)
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
            models=self._models(
                branch, stage, Amounts(ranks, shares.step_samples[1], steps, samples_per_epoch, mean_bytes)
            ),
        )

    def _ranks(self, stage: TrainStage) -> int:
        """The number given; otherwise, for `workers: auto` on planned GPUs, those of a node; otherwise the config's."""
        if self.world_size:
            return self.world_size
        machine = self.machine
        if machine and not machine.hardware.shares_cores and self.config.resources(stage).workers == "auto":
            return min(machine.hardware.gpus_per_node, stage.data.lanes, stage.global_batch_size)
        return self._resources(stage).max_workers

    def _steps(self, branch: Branch, stage: TrainStage, samples_per_epoch: int | None) -> int | None:
        if samples_per_epoch is None and stage.duration.unit == "epochs":
            return None
        steps = stage.duration.steps(samples_per_epoch or 0, stage.global_batch_size)
        warmup = stage.schedule.warmup
        if samples_per_epoch is not None or warmup.unit != "epochs":
            warmup_steps = warmup.steps(samples_per_epoch or 0, stage.global_batch_size)
            if warmup_steps >= steps:
                self.notes.append(
                    f"stages.{branch.stage_name}.schedule.warmup: its {warmup_steps} steps do not end before the "
                    f"{steps} steps of the stage, so the learning rate never reaches optimizer.lr."
                )
        return steps

    def _models(self, branch: Branch, stage: TrainStage, amounts: Amounts) -> list[ModelPlan]:
        planned, machine = [], self.machine
        for origin, model in self.findings.models[branch.id].items():
            if not model.head_known:
                names = " + ".join(stage.data.parts)
                self.notes.append(f"The classes of {names} are not known yet; heads are counted with one class.")
            changes = describe_surgery(model.source, model.spec) if model.source else []
            found = _model(model, stage, amounts, origin or None, changes)
            if machine:
                hardware = self._hardware(machine, stage, branch, amounts.ranks)
                found = replace(found, forecast=forecast_stage(model, stage, amounts, hardware, machine.mtbf_h))
            planned.append(found)
        return planned

    def _hardware(self, machine: Machine, stage: TrainStage, branch: Branch, ranks: int) -> Hardware:
        """The machine as a stage's ranks see it: without GPUs, each has as many cores as it asks for."""
        hardware = machine.hardware
        if hardware.shares_cores:
            hardware = hardware.joined(self._resources(stage).cpus_per_worker)
        idle = -ranks % hardware.gpus_per_node
        if ranks > hardware.gpus_per_node and idle:
            self.notes.append(
                f"stages.{branch.stage_name}: {ranks} ranks leave {idle} of the {ranks + idle} places on "
                f"{(ranks + idle) // hardware.gpus_per_node} nodes of {machine.name} empty; use a multiple of "
                f"{hardware.gpus_per_node}."
            )
        return hardware


def _model(model: Model, stage: TrainStage, amounts: Amounts, origin: str | None, changes: list[str]) -> ModelPlan:
    spec = model.spec
    parameters, backbone, task = count_parameters(spec), spec.backbone, task_of(stage.task)
    frozen = frozen_parameters(backbone, stage.optimizer.freeze)
    activations, of_teacher = kept_bytes(model, stage, amounts.share, amounts.ranks)
    shapes = step_shapes(stage, backbone)
    return ModelPlan(
        spec=spec.to_dict(),
        parameters=parameters,
        frozen_parameters=frozen,
        head_parameters={name: head_parameters(spec, name) for name in spec.heads},
        gflops={_shape(size, patch, backbone): task.forward_flops(spec, size, patch) / 1e9 for size, patch in shapes},
        memory=rank_memory(parameters, stage, amounts.ranks, activations, of_teacher, frozen),
        starts_from=origin,
        surgeries=changes,
        teacher=_teacher(model.teacher.spec, stage) if model.teacher else None,
    )


def _teacher(spec: ModelSpec, stage: TrainStage) -> TeacherPlan:
    assert stage.task.taught_by is not None
    backbone, gflops = spec.backbone, forward_flops(spec) / 1e9
    parameters = count_parameters(spec)
    return TeacherPlan(stage.task.taught_by, backbone.variant, backbone.image_size, parameters, gflops)


def _shape(size: Pair, patch: Pair, spec: ViTSpec) -> str:
    size_text, patch_text = ("x".join(map(str, pair)) for pair in (size, patch))
    return size_text if patch == spec.patch else f"{size_text}/{patch_text}"


def _mean_bytes(indexes: list[DatasetIndex], weights: list[int]) -> float:
    """Mean bytes per sample of a mixture."""
    means = [int(index.sizes.sum()) / index.num_samples for index in indexes]
    return sum(mean * weight for mean, weight in zip(means, weights, strict=True)) / sum(weights)
