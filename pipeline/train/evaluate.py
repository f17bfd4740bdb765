"""Evaluation of finished models on one rank: every sample of a data set exactly once over all ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pipeline.checkpoints.storage import told_if_unwritable
from pipeline.config.training import ClassificationConfig
from pipeline.errors import DataError
from pipeline.files import write_json
from pipeline.models.bundle import load_bundle
from pipeline.models.minivit import MiniViT
from pipeline.stream.loader import EvalLoader
from pipeline.tasks import build_task
from pipeline.train.device import precision_dtype, select_device
from pipeline.train.job import EvaluateJob, RankContext
from pipeline.train.loop import evaluate_collective
from pipeline.train.stall import StallWatch

NAME = "evaluation.json"


def evaluate_worker(job: EvaluateJob, context: RankContext) -> None:
    """Evaluate each model of the job in turn; rank 0 writes `evaluation.json`."""
    device, watch = select_device(), StallWatch(job.stall_timeout_s, context.log)
    results = {name: evaluate_model_collective(job, path, device, watch) for name, path in job.models.items()}
    watch.close()
    if dist.get_rank() == 0:
        with told_if_unwritable(job.folder):
            write_evaluation(job, results)


def evaluate_model_collective(job: EvaluateJob, path: Path, device: torch.device, watch: StallWatch) -> dict[str, Any]:
    """Loss, accuracies and confusion counts of one bundle."""
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
        rank=dist.get_rank(),
        world_size=dist.get_world_size(),
        batch_size=job.batch_size,
        loader_workers=job.loader_workers,
    )
    means, confusion = evaluate_collective(model, task, bundle.preprocess, dtype, batches, watch.beat)
    seen, expected = int(confusion.sum()), job.data.index.num_samples
    if seen != expected:
        raise DataError(
            f"{job.data.index.url}: {seen} of {expected} samples could be evaluated, the others cannot be decoded; "
            "`minivit shards verify` names them"
        )
    per_class = (confusion.diag() / confusion.sum(dim=1).clamp(min=1)).tolist()
    return {
        **means,
        "samples": seen,
        "confusion": confusion.tolist(),
        "per_class_accuracy": dict(zip(job.classes, per_class, strict=True)),
    }


def write_evaluation(job: EvaluateJob, results: dict[str, dict[str, Any]]) -> None:
    evaluation = {
        "dataset": job.data.index.url,
        "samples": job.data.index.num_samples,
        "classes": job.classes,
        "models": results,
    }
    write_json(job.folder / NAME, evaluation)
