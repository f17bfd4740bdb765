"""kNN accuracy of a model's features during training: a quality measure for training without labels."""

from __future__ import annotations

from pathlib import Path

from pipeline.metrics.accuracy import KNN
from pipeline.models.bundle import Preprocess
from pipeline.probe.knn import right_by_k
from pipeline.probe.rows import Rows, counts_of_ranks
from pipeline.shards.bad_samples import PROBED
from pipeline.stream.source import Source
from pipeline.tasks.base import TaskModule
from pipeline.train.features import features_collective, labelled_batches
from pipeline.train.job import KnnJob
from pipeline.train.stall import StallWatch


def knn_collective(
    task: TaskModule,
    job: KnnJob,
    preprocess: Preprocess,
    watch: StallWatch,
    *,
    batch_size: int,
    loader_workers: int,
    folder: Path,
) -> dict[str, float]:
    """The accuracy of the current weights; empty without good samples. `task` may be the engine's module.

    Both data sets are read once. Their bad samples are recorded in `folder`.
    """

    def rows(source: Source) -> Rows:
        batches = labelled_batches(
            source,
            preprocess,
            batch_size=batch_size,
            loader_workers=loader_workers,
            quarantine_path=folder / PROBED,
        )
        device = next(task.parameters()).device
        with watch.following(batches.bytes_read):
            return features_collective(embed, batches, preprocess, device, watch.beat)

    with task.embedding(job.config.features) as embed:
        train, test = rows(job.train), rows(job.test)
    neighbours, total = (sum(counts_of_ranks(part.labels)) for part in (train, test))
    if not neighbours or not total:
        return {}
    k = min(job.config.k, neighbours)
    [right] = right_by_k(test, train, [k], job.num_classes, job.config.temperature, watch.beat).values()
    return {KNN.name: right / total}
