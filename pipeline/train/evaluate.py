"""Evaluation on one rank: every sample of a data set exactly once over all ranks."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from pipeline.checkpoints.storage import explain_unwritable
from pipeline.errors import DataError
from pipeline.files import write_json
from pipeline.metrics.bootstrap import Interval
from pipeline.metrics.collector import Collector, Resampling
from pipeline.models.bundle import load_bundle
from pipeline.models.minivit import MiniViT
from pipeline.probe.interval import accuracy_intervals
from pipeline.shards.bad_samples import TEST, summarise
from pipeline.stream.batch import Batch
from pipeline.stream.loader import EvalLoader
from pipeline.tasks.base import TaskModule
from pipeline.tasks.examples import examples
from pipeline.tasks.task import task_of
from pipeline.train.device import precision_dtype, select_device
from pipeline.train.feed import on_device
from pipeline.train.inputs import normalised_views, view_keys
from pipeline.train.job import EvaluateJob, RankContext
from pipeline.train.progress import ProgressFile
from pipeline.train.stall import StallWatch

NAME = "evaluation.json"
EVALUATION_SEED = 0  # for a task's random draws in evaluation, the same for every model and run
DRAFTS = ".drafts"  # folder with the files of the models evaluated so far


@torch.no_grad()
def evaluate_collective(
    task: TaskModule,
    batches: Iterable[Batch],
    beat: Callable[[], None] = lambda: None,
    collectors: Collection[Collector] = (),
) -> dict[str, float]:
    """Measures over the batches of all ranks; every rank must have the same number of batches.

    `samples` counts the good samples; means leave out the `bad_samples`. Afterwards rank 0's collectors hold the
    results of all ranks. `task` may be the engine's module even under ZeRO-3, whose hooks gather the parameters. `beat`
    is called for every batch as a sign of life. Raises DataError if no sample is good.
    """
    device = next(task.parameters()).device
    training = task.training
    task.eval()
    sums = torch.zeros(len(task.sum_names) + 2, dtype=torch.float64, device=device)
    with on_device(batches, device) as moved:
        for batch in moved:
            views = normalised_views(batch, task.preprocess)
            evaluated = task(views, batch.targets, batch.weights, view_keys(batch, EVALUATION_SEED))
            good, real = batch.weights > 0, batch.slots >= 0
            counts = torch.stack([good.sum(), (~good & real).sum()])
            sums += torch.cat([evaluated.sums, counts.double()])
            for collector in collectors:
                collector.add(evaluated.predicted, batch)
            beat()
    dist.all_reduce(sums)
    task.train(training)
    *_, samples, bad_samples = sums.tolist()
    if not samples:
        raise DataError(f"all {bad_samples:.0f} evaluation samples are bad; `minivit shards verify` shows why")
    measures = task.means(sums[:-2]) | merge_collective(collectors)
    return {**measures, "samples": samples, "bad_samples": bad_samples}


def merge_collective(collectors: Collection[Collector]) -> dict[str, float]:
    """Merge the states of all ranks into rank 0's collectors; returns their measures on every rank."""
    measures: dict[str, float] = {}
    for collector in collectors:
        mine = collector.state()
        states = [mine] * dist.get_world_size() if dist.get_rank() == 0 else None
        dist.gather_object(mine, states)
        for state in (states or [])[1:]:
            collector.merge(state)
        told = [collector.measures() if states else {}]
        dist.broadcast_object_list(told)
        measures |= told[0]
    return measures


def evaluate_worker(job: EvaluateJob, context: RankContext) -> None:
    """Evaluate each model of the job in turn; rank 0 writes the files."""
    device, results, intervals = select_device(), {}, {}
    drafts = job.folder / DRAFTS
    with explain_unwritable(job.folder):
        if dist.get_rank() == 0:
            shutil.rmtree(drafts, ignore_errors=True)
            drafts.mkdir(parents=True)
        progress = ProgressFile(job.folder if dist.get_rank() == 0 else None)
        for name in job.models:
            results[name], collectors = evaluate_model_collective(job, name, device, context.watch, progress)
            if dist.get_rank() == 0:
                intervals[name] = intervals_of(results[name], collectors)
                for collector in collectors:
                    collector.write(drafts, name, job.classes)
        if dist.get_rank() == 0:
            publish(drafts, job.folder)
            write_evaluation(job, results, intervals)


def evaluate_model_collective(
    job: EvaluateJob, name: str, device: torch.device, watch: StallWatch, progress: ProgressFile
) -> tuple[dict[str, float], Collection[Collector]]:
    """Measures of one bundle and, on rank 0, its merged collectors. Raises DataError if too many samples are bad."""
    watch.beat()
    bundle = load_bundle(job.models[name])
    dtype = precision_dtype(job.precision)
    model = MiniViT.from_state(bundle.spec, bundle.state)
    model.to(device=device, dtype=dtype)
    plain = job.data.config.eval or bundle.preprocess.eval
    task = task_of(job.task).module(model, job.classes, replace(bundle.preprocess, eval=plain))
    batches = EvalLoader(
        job.data.with_tokenizer(bundle.preprocess.tokenizer),
        channels=bundle.spec.backbone.channels,
        targets=job.task.targets,
        views=job.task.view_groups(evaluation=True),
        size=bundle.spec.backbone.image_size,
        plain=plain,
        rank=dist.get_rank(),
        world_size=dist.get_world_size(),
        batch_size=job.batch_size,
        loader_workers=job.loader_workers,
        quarantine_path=job.folder / TEST,
    )
    watch.beat()
    progress.begin(name, len(batches))
    collectors = [*task.collectors(validation=False).values(), *examples(task)]
    with watch.following(batches.bytes_read):
        metrics = evaluate_collective(task, batches, progress.beating(watch.beat), collectors)
    seen, expected = metrics["samples"] + metrics["bad_samples"], job.data.index.num_samples
    assert seen == expected, f"{seen} samples seen of {expected}"
    return metrics, collectors


def publish(drafts: Path, folder: Path) -> None:
    """Move complete files into `folder`, replacing those of an earlier evaluation."""
    for path in drafts.iterdir():
        target = folder / path.name
        if target.is_dir():
            shutil.rmtree(target)
        os.replace(path, target)
    drafts.rmdir()


def intervals_of(metrics: Mapping[str, float], collectors: Iterable[Collector]) -> dict[str, Interval]:
    """The 95 % intervals of measures, by name: Wilson's of accuracies, and those that collectors know."""
    found = accuracy_intervals(metrics, int(metrics["samples"]))
    for collector in collectors:
        found |= collector.intervals() if isinstance(collector, Resampling) else {}
    return found


def write_evaluation(
    job: EvaluateJob, results: Mapping[str, Mapping[str, float]], intervals: Mapping[str, Mapping[str, Interval]]
) -> None:
    """Write the summary, the last file: it marks an evaluation as complete."""
    evaluation = {
        "name": job.data.name,
        "dataset": job.data.index.url,
        "samples": job.data.index.num_samples,
        "classes": len(job.classes),
        "precision": job.precision,
        "bad_samples": summarise(job.folder / TEST, job.data.index.num_samples).to_dict(),
        "schema": job.task.measured.to_dict(),
        "models": {
            name: as_json(metrics) | ({"intervals": intervals[name]} if intervals[name] else {})
            for name, metrics in results.items()
        },
    }
    write_json(job.folder / NAME, evaluation)


def as_json(metrics: Mapping[str, float]) -> dict[str, object]:
    """The metrics with counts as integers."""
    return {name: int(value) if name.endswith("samples") else value for name, value in metrics.items()}
