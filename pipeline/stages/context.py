"""What all stages of one `minivit run` share."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config.class_names import repeated
from pipeline.config.data import DatasetConfig
from pipeline.config.schema import PipelineConfig
from pipeline.config.stage import StageConfig
from pipeline.errors import ConfigError, DataError
from pipeline.shards.index_file import load_index
from pipeline.shards.make import ensure_made, maker
from pipeline.stages.folder import RunFolder
from pipeline.stages.resolve import most_workers
from pipeline.stages.usable_samples import check_usable, counted, named_alike
from pipeline.targets import target_kind
from pipeline.tracking.store import TrackingStore, choose_store
from pipeline.train.job import Dataset

if TYPE_CHECKING:  # a plan uses this module without a cluster or a store
    from pipeline.cluster.reservations import Cluster
    from pipeline.cluster.resources import Resources
    from pipeline.stages.progress import Progress
    from pipeline.stages.stop import StopRequest
    from pipeline.tracking.runs import Tracker

TRACKED = "tracked"  # in a run's record: true once its MLflow run has ended with every stage finished
MOST_NUMBERED = 1_000_000  # unnamed classes; each takes a row of the model's head


@dataclass
class RunContext:
    """The driver's handles on a running pipeline."""

    config: PipelineConfig
    folder: RunFolder
    connect: Callable[[], Cluster]
    tracker: Tracker
    parent_run_id: str
    progress: Progress
    stop: StopRequest
    datasets: dict[str, Dataset] = field(default_factory=dict)

    @cached_property
    def cluster(self) -> Cluster:
        """The cluster, connected on its first use: what has finished needs none."""
        return self.connect()

    def resources(self, stage: StageConfig) -> Resources:
        """The resources of a stage on the cluster."""
        return self.cluster.settle(self.config.resources(stage), most_workers(stage))

    def say(self, stage_id: str, message: str) -> None:
        self.progress.say(f"{stage_id}: {message}")


def tracking_store(config: PipelineConfig) -> TrackingStore:
    """Where a pipeline is tracked: chosen from the config, the environment and what earlier starts recorded."""
    runs_dir = Path(config.runs_dir)
    return choose_store(config.tracking, runs_dir, RunFolder(runs_dir / config.name).record(), os.environ)


def is_tracked(config: PipelineConfig) -> bool:
    """Whether the store already has everything of this pipeline, as it last finished; asks the run's record alone."""
    record = RunFolder(Path(config.runs_dir) / config.name).record()
    return bool(record.get(TRACKED)) and record.items() >= tracking_store(config).record.items()


def find_datasets(config: PipelineConfig) -> tuple[dict[str, Dataset], dict[str, DataError]]:
    """The data sets whose shards exist, and the problem of each of the others; makes nothing.

    Raises `ConfigError` for a `make` that names no built-in data set.
    """
    found: dict[str, Dataset] = {}
    problems: dict[str, DataError] = {}
    for name, dataset in config.datasets.items():
        try:
            if dataset.make:
                maker(dataset.make)
        except DataError as error:
            raise ConfigError(f"datasets.{name}.make: {error}") from None
        dataset = absolute(dataset)
        try:
            found[name] = Dataset(dataset, load_index(dataset.shards))
        except DataError as error:
            problems[name] = error
    return found, problems


def make_datasets(config: PipelineConfig, problems: Mapping[str, DataError]) -> dict[str, Dataset]:
    """Make the data sets that have a problem; raises the problem if one cannot be made."""
    made = {}
    for name, problem in problems.items():
        dataset = absolute(config.datasets[name])
        if not dataset.make:
            raise problem
        made[name] = Dataset(dataset, ensure_made(dataset.make, dataset.shards))
    return made


def open_datasets(config: PipelineConfig) -> dict[str, Dataset]:
    """Every data set of a pipeline; makes those that are missing if it can."""
    found, problems = find_datasets(config)
    return found | make_datasets(config, problems)


def absolute(dataset: DatasetConfig) -> DatasetConfig:
    """Make local paths absolute, because Ray changes a worker's working directory."""
    changes: dict[str, Any] = {}
    if "://" not in dataset.shards:
        changes["shards"] = str(Path(dataset.shards).absolute())
    if dataset.cache is not None:
        folder = str(Path(dataset.cache.folder).absolute())
        changes["cache"] = dataset.cache.model_copy(update={"folder": folder})
    return dataset.model_copy(update=changes)


def known_class_names(name: str, dataset: Dataset, kind: str) -> list[str]:
    """A data set's class names of one kind: from the config, the index, or plain numbers; empty if unknown.

    Raises `DataError` for labels too large to be class numbers.
    """
    named = dataset.config.classes_of(kind)
    if named_alike(dataset, kind):
        named = named or dataset.index.classes.get(kind)
    if not counted(dataset, kind):
        return list(named or [])
    known = target_kind(kind).known_classes(dataset.index.totals[kind]) or 0
    if named is None and known > MOST_NUMBERED:
        raise DataError(
            f"datasets.{name}: {dataset.config.shards} has labels up to {known - 1}, which look like identifiers; "
            f"number the classes from 0, or name another member in datasets.{name}.targets.{kind}"
        )
    return list(named or map(str, range(known)))


def require_class_names(name: str, dataset: Dataset, kinds: Sequence[str]) -> dict[str, list[str]]:
    """The class names of each kind that has classes.

    Raises `DataError` if the shards hold a label out of range, or nothing usable.
    """
    check_usable(name, dataset, kinds)
    return {kind: _require_class_names(name, dataset, kind) for kind in kinds if target_kind(kind).classed}


def _require_class_names(name: str, dataset: Dataset, kind: str) -> list[str]:
    names = known_class_names(name, dataset, kind)
    known = target_kind(kind).known_classes(dataset.index.totals[kind]) if counted(dataset, kind) else None
    if known is not None and known > len(names):
        raise DataError(
            f"datasets.{name}: {dataset.config.shards} has labels up to {known - 1}, but there are {len(names)} "
            f"classes (0 to {len(names) - 1}); correct `classes` or the labels and index the shards again"
        )
    if not names:
        raise DataError(
            f"datasets.{name}: found no class names for the {kind} in {dataset.config.shards}; list them in "
            f"datasets.{name}.classes, or run `minivit shards index '{dataset.config.shards}' --classes {kind}=FILE`"
        )
    if twice := repeated(names):
        raise DataError(
            f"datasets.{name}: {dataset.config.shards} names classes {' and '.join(map(str, twice[1]))} both "
            f"{twice[0]!r}, so they would merge; rename one of them with `minivit shards index --classes`"
        )
    return names
