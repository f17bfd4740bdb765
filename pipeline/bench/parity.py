"""Compares the accuracy of our training with that of timm's model in a plain loop, with the same shards and recipe."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from pipeline.bench.parity_peer import PeerJob, train_peer
from pipeline.bench.step_process import on_its_own
from pipeline.config.load import dump_config, parse_config
from pipeline.config.schema import PipelineConfig
from pipeline.config.train_stage import TrainStage
from pipeline.errors import ConfigError, PipelineError
from pipeline.models.bundle import Preprocess
from pipeline.stages.context import open_datasets
from pipeline.stages.data import stage_data
from pipeline.stages.evaluation_task import evaluated_data
from pipeline.stages.resolve import stage_branches, stage_spec
from pipeline.stream.source import build_mixture, evaluation_of
from pipeline.train.seeds import stage_seed

EVALUATE = "evaluate"
TASK = "classification"


def measure(
    config: PipelineConfig, stage_name: str, *, test: str, variant: str, epochs: int, seeds: int, threads: int
) -> dict[str, Any]:
    """Test accuracy of both after `epochs` epochs, by seed, with means and sample standard deviations.

    A seed sets the sample order and augmentation, which both get from our stream, and the initial weights, which each
    draws in its own way. `difference` is ours minus timm's, per seed.
    """
    found: dict[str, list[float]] = {"ours": [], "timm": []}
    for seed in range(seeds):
        one = only(config, stage_name, test=test, variant=variant, epochs=epochs, seed=seed)
        found["timm"].append(on_its_own(train_peer, peer_job(one, stage_name, test, threads)))
        found["ours"].append(train_ours(one, stage_name))
    apart = [ours - timm for ours, timm in zip(found["ours"], found["timm"], strict=True)]
    return {
        "settings": {"stage": stage_name, "variant": variant, "epochs": epochs, "test": test},
        **{name: mean_and_deviation(values) for name, values in {**found, "difference": apart}.items()},
    }


def mean_and_deviation(values: list[float]) -> dict[str, Any]:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "deviation": deviation, "seeds": values}


def only(config: PipelineConfig, stage_name: str, *, test: str, variant: str, epochs: int, seed: int) -> PipelineConfig:
    """Reduces a pipeline to one training stage of one variant, from scratch, and its evaluation.

    Raises ConfigError if the plain loop does not support the stage's recipe.
    """
    stage = config.stages.get(stage_name)
    if not isinstance(stage, TrainStage) or stage.init_from or stage.task.type != TASK:
        raise ConfigError(
            f"stages.{stage_name}: expected a stage that trains a classifier from scratch; choose another with --stage"
        )
    for field, found, expected in (
        ("optimizer.name", stage.optimizer.name, "adamw"),
        ("optimizer.layer_decay", stage.optimizer.layer_decay, None),
        ("resolution.mode", stage.resolution.mode, "fixed"),
        ("schedule.decay", stage.schedule.decay, None),
    ):
        if found != expected:
            raise ConfigError(
                f"stages.{stage_name}.{field}: found {found!r}, which the plain loop does not support; set it to "
                f"{'null' if expected is None else expected}"
            )
    raw = config.model_dump(mode="json")
    trained = raw["stages"][stage_name]
    trained["model"]["variant"], trained["duration"] = variant, f"{epochs} epochs"
    judged = {"type": EVALUATE, "models": [stage_name], "data": test}
    named = {"name": f"parity-{seed}", "seed": seed, "stages": {stage_name: trained, EVALUATE: judged}}
    return parse_config(raw | named, "parity")


def peer_job(config: PipelineConfig, stage_name: str, test: str, threads: int) -> PeerJob:
    """Returns what the plain loop needs of a pipeline from `only`."""
    datasets, where = open_datasets(config), f"stages.{stage_name}"
    (branch,) = (branch for branch in stage_branches(config) if branch.stage_name == stage_name)
    stage = branch.stage
    assert isinstance(stage, TrainStage)
    train, val, classes = stage_data(datasets, stage.data, stage.task, where)
    spec = stage_spec(branch, len(classes))
    dataset, backbone = train[0].config, spec.backbone
    plain = evaluation_of(train, val)
    seed = stage_seed(config.seed, branch.id)
    samples_per_epoch = build_mixture(train, stage.data, seed).epoch_slots
    steps, warmup = (
        length.steps(samples_per_epoch, stage.global_batch_size) for length in (stage.duration, stage.schedule.warmup)
    )
    return PeerJob(
        stage=stage,
        spec=spec,
        preprocess=Preprocess(
            dataset.mean, dataset.std, backbone.channels, backbone.image_size, dataset.background, plain
        ),
        train=train,
        test=evaluated_data(test, datasets[test], stage.task)[0],
        total_steps=max(steps, 1),
        warmup_steps=warmup,
        seed=seed,
        threads=threads,
    )


def train_ours(config: PipelineConfig, stage_name: str) -> float:
    """Test accuracy of the pipeline, run by `minivit run` in its own folder."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "pipeline.yaml"
        path.write_text(dump_config(config.model_copy(update={"runs_dir": scratch})))
        command = [sys.executable, "-m", "pipeline.cli.main", "run", str(path)]
        # Keeps MLflow's store in the scratch folder, whatever the environment sets.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise PipelineError(f"the pipeline did not finish: {(done.stdout + done.stderr)[-2000:]}")
        evaluation = Path(scratch) / config.name / "stages" / EVALUATE / "evaluation.json"
        (model,) = json.loads(evaluation.read_text())["models"].values()
        found: float = model["accuracy"]
        return found
