"""Commands on models without a pipeline: finds the models and data, and starts the ranks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.cluster.launch import launch
from pipeline.cluster.session import connect
from pipeline.config.data import DatasetConfig
from pipeline.config.paths import public
from pipeline.config.references import names_weights
from pipeline.config.schema import ClusterConfig
from pipeline.credentials import shown
from pipeline.errors import DataError
from pipeline.models.find_bundle import find_bundle
from pipeline.models.foreign import import_foreign
from pipeline.models.integrity import check_files
from pipeline.shards.index import load_index
from pipeline.shards.named_sets import NamedSet
from pipeline.stages.context import absolute
from pipeline.stages.progress import Progress
from pipeline.train.job import Dataset, RankContext

COMMAND = "evaluate"  # the name in errors
POLL_S = 0.5


def bundle_of(reference: str, scratch: Path) -> Path:
    """The bundle of a run, RUN/STAGE or export; imports foreign weights into `scratch`. Raises ModelError."""
    if names_weights(reference):
        return import_foreign(reference, scratch)
    folder = find_bundle(reference)
    check_files(folder)
    return folder


def dataset_of(data: NamedSet, **settings: Any) -> Dataset:
    """Shards as a data set, with further `settings` of its section; without any, images match what the models need.

    Raises `DataError` if their URL holds credentials, which would be in the results.
    """
    try:
        public(data.pattern)
    except ValueError as error:
        raise DataError(f"{shown(data.pattern)}: expected {error}") from None
    config = DatasetConfig(
        shards=data.pattern,
        classes=data.config.classes,
        image_key=data.config.image_key,
        targets=data.config.targets,
        **settings,
    )
    return Dataset(absolute(config), load_index(data.pattern))


def run_ranks(worker: Callable[[Any, RankContext], None], job: Any, folder: Path, config: ClusterConfig) -> None:
    """Run a job on the cluster to its end, with progress on the terminal and logs in `folder`."""
    with connect(config) as cluster, Progress() as progress:
        resources = cluster.settle(config)
        cluster.require(resources, COMMAND, "--workers")
        with progress.following(COMMAND, folder), polled(progress):
            launch(
                worker,
                job,
                resources,
                workers=resources.max_workers,
                name=COMMAND,
                folder=folder,
                stall_timeout_s=config.stall_timeout_s,
                env=config.env,
            )


@contextmanager
def polled(progress: Progress) -> Iterator[None]:
    """Within this context a thread keeps the progress up to date."""
    ended = threading.Event()

    def poll() -> None:
        while not ended.wait(POLL_S):
            progress.poll()

    thread = threading.Thread(target=poll, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
