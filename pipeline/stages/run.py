"""`minivit run`: checks a pipeline, opens its folder, store and cluster, and runs its stages."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from pipeline.cluster.environment import unset
from pipeline.cluster.reservations import Cluster
from pipeline.cluster.session import connect
from pipeline.config.load import dump_config
from pipeline.config.schema import PipelineConfig
from pipeline.config.stage import StageConfig
from pipeline.config.train_stage import TrainStage
from pipeline.credentials import shown
from pipeline.errors import CheckpointError, ConfigError, Interrupted
from pipeline.report.tables import installed_versions
from pipeline.stages.context import TRACKED, RunContext, find_datasets, is_tracked, make_datasets, tracking_store
from pipeline.stages.execution import Execution
from pipeline.stages.folder import INTERRUPTED, RUNNING, RunFolder
from pipeline.stages.preflight import preflight
from pipeline.stages.progress import Progress
from pipeline.stages.resolve import on_workers, stage_branches
from pipeline.stages.stop import StopRequest
from pipeline.stages.storages import check_storages
from pipeline.tracking import runs as mlflow_status
from pipeline.tracking.origin import origin_tags
from pipeline.tracking.runs import Tracker
from pipeline.tracking.store import check_store, describe_store


def run_pipeline(config: PipelineConfig) -> None:
    """Run or resume a pipeline; returns when every stage has finished, raises `PipelineError` otherwise.

    With `train.replay_slots`, runs only that batch again and leaves the run as it is.
    """
    datasets, to_make = find_datasets(config)
    findings = preflight(config, datasets)
    findings.faults += [problem for name, problem in to_make.items() if not config.datasets[name].make]
    findings.faults += unset(config.cluster.env, os.environ, "cluster.env")
    findings.refuse()
    folder = RunFolder(Path(config.runs_dir) / config.name)
    with ExitStack() as stack:
        stack.enter_context(folder.locked())
        require_same_pipeline(config, folder)
        progress = stack.enter_context(Progress())
        if not config.train.replay_slots:
            check_storages(config)
        if to_make:
            datasets |= make_datasets(config, to_make)
            findings = preflight(config, datasets)
            findings.refuse()
        for warning in findings.warnings:
            progress.say(f"warning: {warning}")
        tracker = Tracker(tracking_store(config))

        def cluster() -> Cluster:
            return stack.enter_context(connect(config.cluster))

        close_killed_runs(folder, tracker)
        if config.train.replay_slots:
            from pipeline.stages.replay import replay

            context = RunContext(config, folder, cluster, tracker, "", progress, StopRequest(progress), datasets)
            replay(context, config.train.replay_slots)
            return
        folder.config.write_text(dump_config(without_password(config)))
        progress.say(f"{config.name}: in {folder.path}; {describe_store(tracker.store)}")
        context = RunContext(config, folder, cluster, tracker, "", progress, StopRequest(progress), datasets)
        execution = Execution(context)
        execution.skip_finished()
        if is_tracked(config):
            if not execution.waiting and not execution.untracked:
                return
            check_store(tracker.store)  # which preflight has left out
        context.parent_run_id = stack.enter_context(parent_run(tracker, folder, config.name, progress.say))
        take_resources(context, {branch.stage_name for branch in execution.waiting.values()})
        execution.run()


def take_resources(context: RunContext, stages: Collection[str]) -> None:
    """Check that those of these stages that need workers fit on the cluster; report its resources and idle GPUs.

    Does not connect if none does. Raises `ClusterError`, or `ConfigError` if workers would get no sample of a batch.
    """
    asked = {name: stage for name, stage in on_workers(context.config).items() if name in stages}
    if not asked:
        return
    taken = {name: context.resources(stage) for name, stage in asked.items()}
    for name, resources in taken.items():
        context.cluster.require(resources, f"stages.{name}")
        require_samples(name, asked[name], resources.max_workers)
    for resources in dict.fromkeys(taken.values()):
        context.say(context.config.name, context.cluster.offer(resources))
    if idle := context.cluster.idle_gpus(taken.values()):
        context.say(context.config.name, idle)


def require_samples(name: str, stage: StageConfig, workers: int) -> None:
    """Raise `ConfigError` if a training stage may get more workers than a batch has samples."""
    if isinstance(stage, TrainStage) and stage.global_batch_size < workers:
        raise ConfigError(
            f"stages.{name}.global_batch_size: {stage.global_batch_size} samples cannot be shared by {workers} "
            "workers; use at least one per worker"
        )


def without_password(config: PipelineConfig) -> PipelineConfig:
    """The config, safe to store and show: removes the password that a variable may have put into the tracking URI."""
    if config.tracking.uri is None:
        return config
    tracking = config.tracking.model_copy(update={"uri": shown(config.tracking.uri)})
    return config.model_copy(update={"tracking": tracking})


def close_killed_runs(folder: RunFolder, tracker: Tracker) -> None:
    """Mark stages still recorded as running, which were killed with their driver, on disk and in MLflow."""
    for stage_id in folder.stage_ids():
        status = folder.stage(stage_id).status()
        if status and status.state == RUNNING:
            status.state, status.error = INTERRUPTED, "its driver was killed"
            folder.stage(stage_id).write_status(status)
            if status.mlflow_run_id:
                tracker.end(status.mlflow_run_id, mlflow_status.KILLED)


@contextmanager
def parent_run(tracker: Tracker, folder: RunFolder, name: str, say: Callable[[str], None]) -> Iterator[str]:
    """Begin or resume the MLflow run of the whole pipeline and record how it ends. Yields its id."""
    record = folder.record()
    earlier = record.get("mlflow_run_id")
    run_id = tracker.start(name, run_id=earlier, tags=origin_tags(folder.config))
    if earlier not in (None, run_id):
        lost = f"run {earlier}, tracked in {record.get('tracking_uri')} so far"
        say(f"{name}: this MLflow store does not have {lost}; the new run {run_id} replaces it")
    known = {"mlflow_run_id": run_id, **tracker.store.record, "environment": installed_versions(), TRACKED: False}
    record = {"created": time.time(), **record, **known}
    folder.write_record(record)
    tracker.artifact(run_id, folder.config)
    try:
        yield run_id
    except BaseException as error:
        with suppress(Exception):  # the store may be what failed
            tracker.end(run_id, mlflow_status.KILLED if isinstance(error, Interrupted) else mlflow_status.FAILED)
        raise
    tracker.end(run_id, mlflow_status.FINISHED)
    folder.write_record({**record, TRACKED: True})


def require_same_pipeline(config: PipelineConfig, folder: RunFolder) -> None:
    """Raise `CheckpointError` if the folder holds a stage that this pipeline does not have."""
    types = {branch.id: branch.stage.type for branch in stage_branches(config)}
    for stage_id in folder.stage_ids():
        status = folder.stage(stage_id).status()
        if status and types.get(stage_id) != status.type:
            raise CheckpointError(
                f"{folder.path} belongs to another config: it has the {status.type} stage {stage_id!r}, which this "
                "one does not have; give this run another name with name=..., or remove that stage's folder"
            )
