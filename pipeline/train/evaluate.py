"""Evaluation of finished models on one rank: every sample of a data set exactly once over all ranks."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from pipeline.checkpoints.storage import told_if_unwritable
from pipeline.config.training import ClassificationConfig
from pipeline.files import write_json, write_whole
from pipeline.models.bundle import load_bundle
from pipeline.models.minivit import MiniViT
from pipeline.shards.bad_samples import TEST, summarise
from pipeline.stream.loader import EvalLoader
from pipeline.tasks import build_task
from pipeline.tasks.confusion import ConfusionCounts
from pipeline.train.device import precision_dtype, select_device
from pipeline.train.job import EvaluateJob, RankContext
from pipeline.train.loop import evaluate_collective
from pipeline.train.stall import StallWatch

NAME, PER_CLASS, CONFUSION = "evaluation.json", "per_class.csv", "confusion.npz"


@dataclass(frozen=True)
class Result:
    """What an evaluation says of one model. `confusion` is int64 [pairs, 3]: true class, predicted class, count."""

    metrics: dict[str, float]
    confusion: np.ndarray


def evaluate_worker(job: EvaluateJob, context: RankContext) -> None:
    """Evaluate each model of the job in turn; rank 0 writes the files."""
    device, watch = select_device(), context.watch
    results = {name: evaluate_model_collective(job, path, device, watch) for name, path in job.models.items()}
    if dist.get_rank() == 0:
        with told_if_unwritable(job.folder):
            write_evaluation(job, results)


def evaluate_model_collective(job: EvaluateJob, path: Path, device: torch.device, watch: StallWatch) -> Result:
    """Loss, accuracies and, on rank 0, confusion of one bundle. Raises DataError if too many samples are bad."""
    watch.beat()
    bundle = load_bundle(path)
    dtype = precision_dtype(job.precision)
    model = MiniViT.from_spec(bundle.spec)
    model.load_state_dict(bundle.state)
    model.to(device=device, dtype=dtype)
    task = build_task(ClassificationConfig(), bundle.spec.num_classes)
    batches = EvalLoader(
        job.data,
        channels=bundle.spec.channels,
        num_classes=bundle.spec.num_classes,
        size=bundle.spec.image_size,
        plain=job.data.config.eval or bundle.preprocess.eval,
        rank=dist.get_rank(),
        world_size=dist.get_world_size(),
        batch_size=job.batch_size,
        loader_workers=job.loader_workers,
        quarantine_path=job.folder / TEST,
    )
    watch.beat()
    confusion = ConfusionCounts(bundle.spec.num_classes)
    with watch.following(batches.bytes_read):
        metrics = evaluate_collective(model, task, bundle.preprocess, dtype, batches, watch.beat, confusion)
    seen, expected = metrics["samples"] + metrics["bad_samples"], job.data.index.num_samples
    assert seen == expected, f"{seen} samples seen of {expected}"
    return Result(metrics, merge_collective(confusion).numpy())


def merge_collective(confusion: ConfusionCounts) -> torch.Tensor:
    """The table of all ranks' counts, on rank 0; elsewhere this rank's."""
    mine = confusion.table()
    tables = [mine] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(mine, tables)
    for table in (tables or [])[1:]:
        confusion.merge(table)
    return confusion.table()


def write_evaluation(job: EvaluateJob, results: Mapping[str, Result]) -> None:
    """The summary as JSON; figures per class as a table; confusions, the names of the classes with them, as arrays.

    The arrays of `confusion.npz` are `classes` and, in the order of the summary's models, `arr_0`, `arr_1`, ...
    """
    evaluation = {
        "dataset": job.data.index.url,
        "samples": job.data.index.num_samples,
        "classes": len(job.classes),
        "precision": job.precision,
        "bad_samples": summarise(job.folder / TEST, job.data.index.num_samples).to_dict(),
        "models": {name: as_json(result.metrics) for name, result in results.items()},
    }
    tables = [result.confusion for result in results.values()]
    names = np.array(job.classes)
    write_whole(job.folder / CONFUSION, lambda draft: np.savez_compressed(draft, *tables, classes=names))
    write_whole(job.folder / PER_CLASS, lambda draft: write_per_class(draft, job.classes, results))
    write_json(job.folder / NAME, evaluation)


def as_json(metrics: Mapping[str, float]) -> dict[str, float]:
    """Counts as whole numbers."""
    return {name: int(value) if name.endswith("samples") else value for name, value in metrics.items()}


def write_per_class(path: Path, classes: Sequence[str], results: Mapping[str, Result]) -> None:
    """One row per model and class: samples of the class, how many were right, how often it was predicted."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["model", "class", "samples", "right", "predicted"])
        for model, result in results.items():
            true, predicted, counts = result.confusion.T
            columns = [
                np.bincount(chosen, weights=weights, minlength=len(classes)).astype(np.int64).tolist()
                for chosen, weights in ((true, counts), (true, counts * (true == predicted)), (predicted, counts))
            ]
            writer.writerows([model, *row] for row in zip(classes, *columns, strict=True))
