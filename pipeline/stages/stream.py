"""The data of a training stage for your own code: the batches that the stage trains on, in the same order."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

from pipeline.config.fields import allowed
from pipeline.config.load import load_config
from pipeline.config.schema import PipelineConfig
from pipeline.config.train_stage import TrainStage
from pipeline.errors import ConfigError, DataError
from pipeline.models.spec import as_pair
from pipeline.stages.context import open_datasets
from pipeline.stages.data import stage_data, used_datasets
from pipeline.stages.resolve import Branch, check_channels, stage_branches
from pipeline.stream.batch import Batch
from pipeline.stream.loader import TrainLoader
from pipeline.stream.order import check_lanes
from pipeline.stream.resolution import size_at
from pipeline.stream.source import Source, build_mixture
from pipeline.train.seeds import stage_seed

SLOTS = "slots"


@dataclass(frozen=True)
class StageData:
    """The data sources of a training stage, and the seed of all its random draws."""

    stage: TrainStage
    sources: list[Source]
    classes: list[str]
    seed: int

    @classmethod
    def open(cls, config: PipelineConfig, stage: str, setting: str) -> StageData:
        """The data of a training stage (its first branch if it fans out) or STAGE/VARIANT; makes missing data sets.

        Raises ConfigError, as `setting: ...`, for another name, DataError if the data cannot be read.
        """
        branch = training_branch(config, stage, setting)
        check_channels(config, branch.stage_name)
        assert isinstance(branch.stage, TrainStage)
        data = branch.stage.data
        datasets = {name: config.datasets[name] for name in used_datasets(data)}
        opened = open_datasets(config.model_copy(update={"datasets": datasets}))
        sources, _, classes = stage_data(opened, data, branch.stage.task, f"stages.{branch.stage_name}")
        return cls(branch.stage, sources, classes, stage_seed(config.seed, branch.id))

    @cached_property
    def total_steps(self) -> int:
        """The number of steps of the stage."""
        samples_per_epoch = build_mixture(self.sources, self.stage.data, self.seed).epoch_slots
        return max(self.stage.duration.steps(samples_per_epoch, self.stage.global_batch_size), 1)

    def loader(self, *, rank: int, world_size: int, start_slot: int, loader_workers: int | None = None) -> TrainLoader:
        """The stage's loader for one rank; `loader_workers` overrides the stage's setting."""
        stage, data = self.stage, self.stage.data
        if loader_workers is not None:
            data = data.model_copy(update={"loader_workers": loader_workers})
        return TrainLoader(
            self.sources,
            data,
            channels=stage.model.channels,
            targets=stage.task.targets,
            views=stage.task.view_groups(),
            seed=self.seed,
            rank=rank,
            world_size=world_size,
            global_batch_size=stage.global_batch_size,
            size_at=partial(
                size_at,
                total_steps=self.total_steps,
                base_size=as_pair(stage.model.image_size),
                resolution=stage.resolution,
                seed=self.seed,
            ),
            start_slot=start_slot,
        )


class StageStream(IterableDataset[dict[str, Any]]):
    """One rank's batches of a training stage, from its first step to its last.

    A batch is a dictionary: each group of views, such as `image`, uint8 [B, C, H, W], or [B, V, C, H, W] with several
    views of a sample, not normalised; the fields of the targets, such as `label` [B] (those of varying length, such as
    `boxes`, are concatenated over the samples, with `boxes.offsets` [B + 1]); `weights`, float32 [B], 0 for
    stand-ins of bad samples; `__slot__`, int64 [B], the samples' positions in the stream; and `__key__`, a list of
    "shard/key". For any `world_size`, the batches of all ranks together are the same global batches.

    The stream decodes in its own processes (`data.loader_workers`), so a `DataLoader` around it needs `batch_size=None`
    and `num_workers=0`. To resume with the next batch, call `state_dict` after any batch and pass it to
    `load_state_dict` of a stream with any rank and world size. Use one iterator at a time: the state is that of the
    last batch returned.

    Raises:
        ConfigError: the config is invalid or has no such training stage, or the stage reads texts.
        DataError: shards are missing, the rank does not exist, or there are not enough lanes for all ranks.
    """

    def __init__(
        self,
        config: str | os.PathLike[str],
        stage: str,
        *,
        rank: int = 0,
        world_size: int = 1,
        overrides: Sequence[str] = (),
    ) -> None:
        """`stage` is a training stage (its first branch if it fans out) or STAGE/VARIANT; overrides are `KEY=VALUE`."""
        if not 0 <= rank < world_size:
            raise DataError(f"rank: found {rank} of {world_size}; ranks are 0 to world_size - 1")
        self.data = StageData.open(load_config(os.fspath(config), overrides), stage, "stage")
        if "text" in self.data.stage.task.targets:
            raise ConfigError(f"stage: {stage!r} reads texts with a tokenizer that only its run has; use another stage")
        check_lanes(self.data.stage.data.lanes, world_size)
        self.rank, self.world_size, self.classes = rank, world_size, self.data.classes
        self.global_batch_size, self.total_steps = self.data.stage.global_batch_size, self.data.total_steps
        self._first_slot = self._slots = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if get_worker_info() is not None:
            raise DataError(
                "num_workers: a stage's stream decodes in its own processes; give DataLoader num_workers=0 and set "
                "data.loader_workers"
            )
        slots = self._slots = self._first_slot
        self._first_slot = 0
        with self.data.loader(rank=self.rank, world_size=self.world_size, start_slot=slots) as loader:
            for step in range(slots // self.global_batch_size, self.total_steps):
                batch = as_dict(next(loader))
                self._slots = (step + 1) * self.global_batch_size
                yield batch

    def state_dict(self) -> dict[str, int]:
        """The number of slots that all ranks together have consumed."""
        return {SLOTS: self._slots}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Resume at the position of another stream of the same stage. Raises DataError for other states."""
        slots, size = state.get(SLOTS), self.global_batch_size
        if not isinstance(slots, int) or slots % size or not 0 <= slots <= self.total_steps * size:
            raise DataError(
                f"state: {state} does not belong to a stream of {self.total_steps} global batches of {size} samples"
            )
        self._first_slot = self._slots = slots


def as_dict(batch: Batch) -> dict[str, Any]:
    """A batch as a dictionary with names like WebDataset's."""
    return {
        "__key__": batch.keys,
        "__slot__": batch.slots,
        "weights": batch.weights,
        **batch.views,
        **batch.targets,
    }


def training_branch(config: PipelineConfig, stage: str, setting: str) -> Branch:
    """A branch by its id, or the first of a stage. Raises ConfigError, as `setting: ...`, for another name."""
    branches = [branch for branch in stage_branches(config) if isinstance(branch.stage, TrainStage)]
    for branch in branches:
        if stage in (branch.id, branch.stage_name):
            return branch
    names = list(dict.fromkeys(name for branch in branches for name in (branch.stage_name, branch.id)))
    raise ConfigError(f"{setting}: found {stage!r}, which is not a training stage; {allowed(stage, names)}")
