"""What all stages of one `minivit run` share."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.cluster.session import Cluster
from pipeline.config.class_names import repeated
from pipeline.config.data import DatasetConfig
from pipeline.config.schema import PipelineConfig
from pipeline.errors import DataError
from pipeline.shards.index import load_index
from pipeline.shards.make import ensure_made
from pipeline.stages.folder import RunFolder
from pipeline.stages.progress import Progress
from pipeline.stages.stop import StopRequest
from pipeline.tracking.runs import Tracker
from pipeline.train.job import Dataset


@dataclass
class RunContext:
    """The open ends of a running pipeline, as the driver holds them."""

    config: PipelineConfig
    folder: RunFolder
    cluster: Cluster
    tracker: Tracker
    parent_run_id: str
    progress: Progress
    stop: StopRequest
    datasets: dict[str, Dataset] = field(default_factory=dict)

    def say(self, stage_id: str, message: str) -> None:
        self.progress.say(f"{stage_id}: {message}")


def open_datasets(config: PipelineConfig) -> dict[str, Dataset]:
    """Every data set of a pipeline, made first where it can be and is not there."""
    datasets = {}
    for name, dataset in config.datasets.items():
        dataset = absolute(dataset)
        index = ensure_made(dataset.make, dataset.shards) if dataset.make else load_index(dataset.shards)
        datasets[name] = Dataset(dataset, index)
    return datasets


def absolute(dataset: DatasetConfig) -> DatasetConfig:
    """Local paths made absolute: Ray changes a worker's working directory."""
    changes: dict[str, Any] = {}
    if "://" not in dataset.shards:
        changes["shards"] = str(Path(dataset.shards).absolute())
    if dataset.cache is not None:
        folder = str(Path(dataset.cache.folder).absolute())
        changes["cache"] = dataset.cache.model_copy(update={"folder": folder})
    return dataset.model_copy(update=changes)


def class_names(name: str, dataset: Dataset) -> list[str]:
    """The label names of a data set: the config's, the index's, or plain numbers.

    Raises `DataError` if the shards hold a label beyond them.
    """
    lowest, highest = dataset.index.label_range or (0, -1)
    names = dataset.config.classes or dataset.index.classes or [str(label) for label in range(highest + 1)]
    if highest >= len(names) or lowest < 0:
        raise DataError(
            f"datasets.{name}: {dataset.config.shards} holds labels {lowest} to {highest}, but there are "
            f"{len(names)} classes (0 to {len(names) - 1}); correct `classes` or the labels and index the shards again"
        )
    if not names:
        raise DataError(f"datasets.{name}: {dataset.config.shards} holds no labels; index it again with its label key")
    if twice := repeated(names):
        raise DataError(
            f"datasets.{name}: {dataset.config.shards} names the classes {' and '.join(map(str, twice[1]))} both "
            f"{twice[0]!r}, which would become one; rename one of them with `minivit shards index --classes`"
        )
    return list(names)
