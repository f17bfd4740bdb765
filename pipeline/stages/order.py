"""Which sample each slot of a stage holds, found by running the loader of every rank."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from pipeline.config.fields import allowed
from pipeline.config.schema import PipelineConfig, TrainStage
from pipeline.errors import ConfigError
from pipeline.stages.context import open_datasets
from pipeline.stages.data import stage_data
from pipeline.stages.resolve import Branch, as_pair, check_channels, stage_branches
from pipeline.stages.train import stage_seed
from pipeline.stream.loader import TrainLoader
from pipeline.stream.resolution import size_at
from pipeline.stream.source import Source, build_mixture


def stage_order(
    config: PipelineConfig, stage: str, *, world_size: int, loader_workers: int | None, first_slot: int, num_slots: int
) -> list[dict[str, Any]]:
    """{slot, rank, shard, key} of `num_slots` slots from `first_slot` on, by slot; of a mixture also the data set.

    `stage` is a training stage, or STAGE/VARIANT; of one that fans out, its first branch.
    Raises ConfigError for another name, DataError where the data cannot be read or split.
    """
    branch = training_branch(config, stage)
    check_channels(config, branch.stage_name)
    assert isinstance(branch.stage, TrainStage)
    data = branch.stage.data
    used = {*data.parts, *([data.val] if data.val else [])}
    opened = open_datasets(config.model_copy(update={"datasets": {name: config.datasets[name] for name in used}}))
    sources, *_ = stage_data(opened, data, branch.stage.task, f"stages.{branch.stage_name}")
    seed = stage_seed(config.seed, branch.id)
    rows: list[dict[str, Any]] = [
        {"slot": slot, "rank": rank, "shard": key.partition("/")[0], "key": key.partition("/")[2]}
        for rank in range(world_size)
        for slot, key in rank_slots(
            branch.stage,
            sources,
            seed,
            rank=rank,
            world_size=world_size,
            loader_workers=data.loader_workers if loader_workers is None else loader_workers,
            first_slot=first_slot,
            stop_slot=first_slot + num_slots,
        )
    ]
    rows.sort(key=lambda row: row["slot"])
    if len(sources) > 1:
        spots = build_mixture(sources, data, seed).spots(np.array([row["slot"] for row in rows]))
        rows = [row | {"dataset": sources[spot.source].name} for row, spot in zip(rows, spots, strict=True)]
    return rows


def training_branch(config: PipelineConfig, stage: str) -> Branch:
    """A branch by its id, or the first of a stage."""
    branches = [branch for branch in stage_branches(config) if isinstance(branch.stage, TrainStage)]
    for branch in branches:
        if stage in (branch.id, branch.stage_name):
            return branch
    names = list(dict.fromkeys(name for branch in branches for name in (branch.stage_name, branch.id)))
    raise ConfigError(f"--stage: found {stage!r}, which is no training stage; {allowed(stage, names)}")


def rank_slots(
    stage: TrainStage,
    sources: list[Source],
    seed: int,
    *,
    rank: int,
    world_size: int,
    loader_workers: int,
    first_slot: int,
    stop_slot: int,
) -> Iterator[tuple[int, str]]:
    """(slot, shard/key) of one rank's slots before `stop_slot`, from its real loader."""
    base_size = as_pair(stage.model.image_size)
    steps = -(-(stop_slot - first_slot) // stage.global_batch_size)
    with TrainLoader(
        sources,
        stage.data.model_copy(update={"loader_workers": loader_workers}),
        channels=stage.model.channels,
        targets=stage.task.targets,
        views=stage.task.view_groups(),
        seed=seed,
        rank=rank,
        world_size=world_size,
        global_batch_size=stage.global_batch_size,
        size_at=partial(size_at, total_steps=steps, base_size=base_size, resolution=stage.resolution, seed=seed),
        start_slot=first_slot,
    ) as loader:
        for _ in range(steps):
            batch = next(loader)
            for slot, key in zip(batch.slots.tolist(), batch.keys, strict=True):
                if slot < stop_slot:
                    yield slot, key
