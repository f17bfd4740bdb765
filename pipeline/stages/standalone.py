"""Commands on models without a pipeline: finds the models and data, and starts the ranks."""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.cluster.launch import launch
from pipeline.cluster.session import connect
from pipeline.config.cluster import ClusterConfig
from pipeline.config.data import DatasetConfig
from pipeline.config.paths import public
from pipeline.config.references import names_weights
from pipeline.credentials import shown
from pipeline.errors import ConfigError, DataError
from pipeline.models.find_bundle import find_bundle
from pipeline.models.foreign import import_foreign
from pipeline.models.integrity import check_files
from pipeline.shards.bad_samples import quarantine_files
from pipeline.shards.index_file import load_index
from pipeline.shards.named_sets import NamedSet
from pipeline.stages.context import absolute
from pipeline.stages.progress import Progress
from pipeline.train.job import Dataset, EvaluateJob, ProbeJob, RankContext

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
    """Shards as a data set, read and resized as its section says, with further `settings`.

    Whatever else the section says of pixels is left to the models.

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
        cache=data.config.cache,
        eval=data.config.eval,
        **settings,
    )
    return Dataset(absolute(config), load_index(data.pattern))


@contextmanager
def folders(out: Path | None, name: str, what: str) -> Iterator[tuple[Path, Path]]:
    """A temporary folder, and the folder for results: `out` or, without one, a part of the temporary folder.

    Raises `ConfigError` if `out` already holds the result `name`, which is `what` in words.
    """
    if out is not None and (out / name).exists():
        raise ConfigError(f"--out: {out} already has {what}; give another folder")
    with tempfile.TemporaryDirectory(prefix="minivit-evaluate-") as scratch:
        yield Path(scratch), (out or Path(scratch, "out")).absolute()


def results_of(
    worker: Callable[[Any, RankContext], None],
    job: EvaluateJob | ProbeJob,
    config: ClusterConfig,
    name: str,
    manifests: Iterable[str],
) -> dict[str, Any]:
    """Run a job on the cluster to its end, with progress on the terminal and logs in its folder.

    Returns the content of the file `name` that its ranks write; `manifests` are the lists of bad samples beside it.
    """
    job.folder.mkdir(parents=True, exist_ok=True)
    for file in (file for manifest in manifests for file in quarantine_files(job.folder / manifest)):
        file.unlink()  # left by an unfinished attempt
    with connect(config) as cluster, Progress() as progress:
        resources = cluster.settle(config)
        cluster.require(resources, COMMAND, "--workers")
        with progress.following(COMMAND, job.folder), polled(progress):
            launch(
                worker,
                job,
                resources,
                workers=resources.max_workers,
                name=COMMAND,
                folder=job.folder,
                stall_timeout_s=config.stall_timeout_s,
                env=config.env,
            )
    found: dict[str, Any] = json.loads((job.folder / name).read_text())
    return found


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
