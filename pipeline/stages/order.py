"""Finds which sample each slot of a stage holds by running every rank's loader."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from pipeline.config.schema import PipelineConfig
from pipeline.stages.stream import StageData
from pipeline.stream.source import build_mixture


def stage_order(
    config: PipelineConfig, stage: str, *, world_size: int, loader_workers: int | None, first_slot: int, num_slots: int
) -> list[dict[str, Any]]:
    """{slot, rank, shard, key} of `num_slots` slots from `first_slot` on, by slot; mixtures add the data set.

    `stage` is a training stage or STAGE/VARIANT; a stage that fans out stands for its first branch.
    Raises ConfigError for any other name, DataError if the data cannot be read or split.
    """
    data = StageData.open(config, stage, "--stage")
    rows: list[dict[str, Any]] = [
        {"slot": slot, "rank": rank, "shard": key.partition("/")[0], "key": key.partition("/")[2]}
        for rank in range(world_size)
        for slot, key in rank_slots(
            data,
            rank=rank,
            world_size=world_size,
            loader_workers=loader_workers,
            first_slot=first_slot,
            stop_slot=first_slot + num_slots,
        )
    ]
    rows.sort(key=lambda row: row["slot"])
    if len(data.sources) > 1:
        mixture = build_mixture(data.sources, data.stage.data, data.seed)
        spots = mixture.spots(np.array([row["slot"] for row in rows]))
        rows = [row | {"dataset": data.sources[spot.source].name} for row, spot in zip(rows, spots, strict=True)]
    return rows


def rank_slots(
    data: StageData, *, rank: int, world_size: int, loader_workers: int | None, first_slot: int, stop_slot: int
) -> Iterator[tuple[int, str]]:
    """(slot, shard/key) of one rank's slots before `stop_slot`, from its real loader."""
    steps = -(-(stop_slot - first_slot) // data.stage.global_batch_size)
    place = {"rank": rank, "world_size": world_size, "start_slot": first_slot}
    with data.loader(**place, loader_workers=loader_workers) as loader:
        for _ in range(steps):
            batch = next(loader)
            for slot, key in zip(batch.slots.tolist(), batch.keys, strict=True):
                if slot < stop_slot:
                    yield slot, key
