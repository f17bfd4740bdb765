"""Evaluates finished models on shards, without a pipeline: what `minivit evaluate` runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pipeline.config.cluster import ClusterConfig
from pipeline.config.task import TaskConfig
from pipeline.errors import ConfigError
from pipeline.models.bundle import Bundle, load_bundle
from pipeline.shards.bad_samples import TEST
from pipeline.shards.named_sets import NamedSet
from pipeline.stages.data import check_classes, check_task
from pipeline.stages.evaluation_task import evaluated_data, evaluated_task
from pipeline.stages.standalone import COMMAND, bundle_of, dataset_of, folders, results_of
from pipeline.train.evaluate import NAME, evaluate_worker
from pipeline.train.job import Dataset, EvaluateJob


def evaluate_models(
    references: Sequence[str],
    data: NamedSet,
    cluster: ClusterConfig,
    *,
    batch_size: int,
    loader_workers: int,
    precision: Literal["fp32", "bf16"],
    task: TaskConfig | None = None,
    out: Path | None = None,
) -> dict[str, Any]:
    """Evaluate each model on every sample of a data set exactly once; returns the content of `evaluation.json`.

    Args:
        references: runs, RUN/STAGE, exports, `timm:NAME` or safetensors files.
        data: shards with the classes of these models; images are normalised and resized as the models ask.
        cluster: the ranks, and the Ray cluster if it is not this machine.
        batch_size: images per rank and batch.
        loader_workers: processes per rank that decode images.
        precision: of weights and activations.
        task: what the models are evaluated as; default: their own task, measured as in training.
        out: folder that holds no evaluation yet; gets `evaluation.json`, its tables and pictures, and `logs`.

    Raises:
        ModelError, DataError: a model or the data cannot be read.
        ConfigError: the classes, tasks or pixels that the models need differ, or `out` already holds an evaluation.
    """
    with folders(out, NAME, "an evaluation") as (scratch, folder):
        models = {reference: bundle_of(reference, scratch / str(i)) for i, reference in enumerate(references)}
        described = {reference: load_bundle(path, weights=False) for reference, path in models.items()}
        dataset = _dataset(data, described)
        task = evaluated_task(task, described, COMMAND)
        labelled, classes = evaluated_data(data.name, dataset, task)
        for reference, model in described.items() if classes and not task.names_classes else ():
            check_classes(COMMAND, data.name, classes, reference, model.spec.num_classes, model.classes)
        check_task(task, classes, COMMAND)
        job = EvaluateJob(
            folder=folder,
            models={reference: path.absolute() for reference, path in models.items()},
            task=task,
            data=labelled,
            classes=classes,
            batch_size=batch_size,
            loader_workers=loader_workers,
            precision=precision,
        )
        return results_of(evaluate_worker, job, cluster, NAME, [TEST])


def _dataset(data: NamedSet, models: dict[str, Bundle]) -> Dataset:
    """The data, preprocessed as in the models' training. Raises ConfigError if two models differ in that."""
    backgrounds = {model.preprocess.background: reference for reference, model in models.items()}
    if len(backgrounds) > 1:
        (one, first), (other, second), *_ = backgrounds.items()
        raise ConfigError(
            f"{first} shows transparent pixels as {list(one)}, but {second} as {list(other)}; evaluate them one by one"
        )
    return dataset_of(data, background=next(iter(backgrounds)))
