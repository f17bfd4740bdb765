"""How evenly the sample order splits a stage's work across ranks: lane l belongs to rank l mod W."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pipeline.config.train_stage import TrainStage
from pipeline.errors import ConfigError
from pipeline.stream.order import step_shares

Range = tuple[int, int]


@dataclass(frozen=True)
class Balance:
    """Minimum and maximum over the ranks; None while the data set does not exist."""

    lanes: Range
    step_samples: Range
    epoch_samples: Range | None
    window_bytes: int | None  # raw bytes that the fullest rank buffers to shuffle within its lanes' windows

    @property
    def idle_share(self) -> float:
        """Fraction of a step that the rank with the least work waits for the rank with the most."""
        return 1 - self.step_samples[0] / self.step_samples[1]


def balance(
    stage: TrainStage, world_size: int, samples_per_epoch: int | None, mean_sample_bytes: float | None, *, where: str
) -> Balance:
    """Each rank's share of lanes, steps and epochs. Raises ConfigError if a rank would get no lane or no sample."""
    lanes, global_batch_size = stage.data.lanes, stage.global_batch_size
    for setting, amount in (("data.lanes", lanes), ("global_batch_size", global_batch_size)):
        if amount < world_size:
            raise ConfigError(
                f"{where}.{setting}: {amount} is too few for {world_size} workers, as each needs at least one"
            )
    per_rank = np.bincount(np.arange(lanes) % world_size, minlength=world_size)
    epoch_samples, window_bytes = None, None
    if samples_per_epoch is not None:
        lane_samples = samples_per_epoch // lanes
        epoch_samples = _range(per_rank * lane_samples)
        if mean_sample_bytes is not None:
            window_bytes = math.ceil(per_rank.max() * min(stage.data.window, lane_samples) * mean_sample_bytes)
    return Balance(_range(per_rank), step_shares(lanes, global_batch_size, world_size), epoch_samples, window_bytes)


def _range(values: np.ndarray) -> Range:
    return int(values.min()), int(values.max())
