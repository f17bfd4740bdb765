"""Probes frozen features of finished models on shards, without a pipeline: what `minivit evaluate --probe` runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pipeline.config.cluster import ClusterConfig
from pipeline.config.probe import BASELINES, MethodsConfig, Pooling
from pipeline.errors import ConfigError
from pipeline.models.bundle import load_bundle
from pipeline.shards.bad_samples import PROBED, TRAIN
from pipeline.shards.named_sets import NamedSet
from pipeline.stages.probe_data import check_features, check_numbers, probe_sources
from pipeline.stages.standalone import COMMAND, bundle_of, dataset_of, folders, results_of
from pipeline.train.job import ProbedModel, ProbeJob
from pipeline.train.probe import NAME, probe_worker


def probe_models(
    references: Sequence[str],
    train: NamedSet,
    test: NamedSet,
    cluster: ClusterConfig,
    *,
    methods: MethodsConfig,
    features: Pooling,
    batch_size: int,
    loader_workers: int,
    precision: Literal["fp32", "bf16"],
    out: Path | None = None,
) -> dict[str, Any]:
    """Fit each method to the features of `train` and test it on those of `test`; returns the content of `probe.json`.

    Args:
        references: runs, RUN/STAGE, exports, `timm:NAME` or safetensors files; besides these, `random` or `pixels`.
        train: labelled shards.
        test: shards with the same classes.
        cluster: the ranks, and the Ray cluster if it is not this machine.
        methods: what is measured.
        features: class token, mean of the patches, or both.
        batch_size: images per rank and batch.
        loader_workers: processes per rank that decode images.
        precision: of weights and activations.
        out: folder that holds no probe yet; gets `probe.json` and `logs`.

    Raises:
        ModelError, DataError: a model or the data cannot be read.
        ConfigError: there is no model, the classes differ, samples are fewer than a k, or `out` already holds a probe.
    """
    with folders(out, NAME, "a probe") as (scratch, folder):
        models = _models(references, scratch)
        for name, model in models.items():
            check_features(COMMAND, features, name, load_bundle(model.path, weights=False).spec)
        data = probe_sources((train.name, test.name), (dataset_of(train), dataset_of(test)), COMMAND)
        check_numbers(methods, data.train.index.num_samples, data.test.index.num_samples, "--probe")
        job = ProbeJob(
            folder=folder,
            models=models,
            **data._asdict(),
            methods=methods,
            features=features,
            seed=0,
            batch_size=batch_size,
            loader_workers=loader_workers,
            precision=precision,
        )
        return results_of(probe_worker, job, cluster, NAME, [TRAIN, PROBED])


def _models(references: Sequence[str], scratch: Path) -> dict[str, ProbedModel]:
    """The models by reference; baselines are built for the first model. Raises `ConfigError` if there is none."""
    if set(references) <= set(BASELINES):
        raise ConfigError(f"{COMMAND}: random and pixels take their shape from a model; name one too")
    bundles = {
        reference: bundle_of(reference, scratch / str(number)).absolute()
        for number, reference in enumerate(references)
        if reference not in BASELINES
    }
    first = next(iter(bundles.values()))
    return {name: ProbedModel(first, name) if name in BASELINES else ProbedModel(bundles[name]) for name in references}
