"""A probe on one rank: the features of each model on both data sets, and the results of every method on them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.checkpoints.storage import explain_unwritable
from pipeline.config.probe import PIXELS, RANDOM
from pipeline.files import write_json
from pipeline.models.bundle import Preprocess, load_bundle
from pipeline.models.minivit import MiniViT
from pipeline.models.model_spec import ModelSpec
from pipeline.models.pooled import pooled
from pipeline.probe.measure import Measurement, schema_of_methods
from pipeline.probe.rows import Rows
from pipeline.shards.bad_samples import PROBED, TRAIN, summarise
from pipeline.stream.source import Source
from pipeline.train.device import precision_dtype, select_device
from pipeline.train.features import features_collective, labelled_batches
from pipeline.train.job import ProbedModel, ProbeJob, RankContext
from pipeline.train.progress import ProgressFile
from pipeline.train.stall import StallWatch

NAME = "probe.json"
PARTS = "models"  # folder with the results of each model so far
METHODS = "methods"  # name of their settings section in error messages

Embed = Callable[[Tensor], Tensor]


def probe_worker(job: ProbeJob, context: RankContext) -> None:
    """Measure each model that is not done yet; rank 0 writes the files, the summary last."""
    with explain_unwritable(job.folder):
        (job.folder / PARTS).mkdir(parents=True, exist_ok=True)
        progress = ProgressFile(job.folder if dist.get_rank() == 0 else None)
        results = dict(job.done)
        for name in job.models:
            if name not in results:
                results[name] = probe_collective(job, name, context.watch, progress)
                if dist.get_rank() == 0:
                    write_json(part_of(job, name), results[name])
        if dist.get_rank() == 0:
            write_json(job.folder / NAME, summary(job, results))


def part_of(job: ProbeJob, name: str) -> Path:
    """The file of one model's results."""
    return job.folder / PARTS / f"{list(job.models).index(name):03}.json"


def probe_collective(job: ProbeJob, name: str, watch: StallWatch, progress: ProgressFile) -> dict[str, Any]:
    """The results of one model, the same on every rank."""
    watch.beat()
    device = select_device()
    embed, preprocess = embedding(job.models[name], job, device)
    train, test = (
        _features(job, source, embed, preprocess, manifest, watch, progress, f"{name}: features of {source.name}")
        for source, manifest in ((job.train, TRAIN), (job.test, PROBED))
    )
    measurement = Measurement(
        train,
        test,
        len(job.classes),
        where=METHODS,
        tell=lambda words: progress.begin(f"{name}: {words}"),
        beat=watch.beat,
    )
    measured = measurement.measure_collective(job.methods)
    return measured.measures | {
        "intervals": measured.intervals,
        "chosen": measured.chosen,
        "width": train.features.shape[1],
        "train_samples": measurement.num_train,
        "samples": measurement.num_test,
    }


def embedding(model: ProbedModel, job: ProbeJob, device: torch.device) -> tuple[Embed, Preprocess]:
    """The function from normalised images to features, and the preprocessing for those images.

    Baselines use the preprocessing of the model that they accompany.
    """
    if model.baseline == PIXELS:
        return lambda images: images.flatten(1), load_bundle(model.path, weights=False).preprocess
    if model.baseline == RANDOM:
        bundle = load_bundle(model.path, weights=False)
        torch.manual_seed(job.seed)
        network = MiniViT.from_spec(ModelSpec.classifier(bundle.spec.backbone, 1))
    else:
        bundle = load_bundle(model.path)
        network = MiniViT.from_state(bundle.spec, bundle.state)
    network.to(device=device, dtype=precision_dtype(job.precision)).eval()
    return lambda images: pooled(network, images, job.features), bundle.preprocess


def _features(
    job: ProbeJob,
    source: Source,
    embed: Embed,
    preprocess: Preprocess,
    manifest: str,
    watch: StallWatch,
    progress: ProgressFile,
    words: str,
) -> Rows:
    batches = labelled_batches(
        source,
        preprocess,
        batch_size=job.batch_size,
        loader_workers=job.loader_workers,
        quarantine_path=job.folder / manifest,
    )
    progress.begin(words, len(batches))
    with watch.following(batches.bytes_read):
        return features_collective(embed, batches, preprocess, select_device(), progress.beating(watch.beat))


def summary(job: ProbeJob, results: dict[str, Any]) -> dict[str, Any]:
    """All results, with the data that they were measured on."""
    manifests = {"train": (job.train, TRAIN), "test": (job.test, PROBED)}
    return {
        "data": {what: source.index.url for what, (source, _) in manifests.items()},
        "samples": {what: source.index.num_samples for what, (source, _) in manifests.items()},
        "bad_samples": {
            what: summarise(job.folder / name, source.index.num_samples).to_dict()
            for what, (source, name) in manifests.items()
        },
        "classes": len(job.classes),
        "features": job.features,
        "precision": job.precision,
        "schema": schema_of_methods(job.methods).to_dict(),
        "models": {name: results[name] for name in job.models},
    }
