"""A task's inputs from a batch: normalised pixels, and a key for the random draws of each view of a sample."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.models.bundle import Preprocess
from pipeline.models.drop_path import sample_keys
from pipeline.models.per_step import per_step
from pipeline.models.spec import Pair
from pipeline.stream.batch import Batch
from pipeline.tasks.base import Outputs, TaskModule
from pipeline.train.seeds import derive_seed


def normalised_views(batch: Batch, preprocess: Preprocess) -> dict[str, Tensor]:
    """Group -> the batch's views, fp32 [B, C, H, W] or [B, V, C, H, W].

    The patch embedding casts them to its own precision; bf16 would cost pixels that a task predicts half a level.
    """
    return {group: preprocess.normalise(pixels) for group, pixels in batch.views.items()}


def view_keys(batch: Batch, seed: int) -> dict[str, Tensor]:
    """Group -> int64 [B] or [B, V]: keys that depend only on the seed, the slot and the view number.

    Views are numbered across the groups in order.
    """
    keys, number = {}, 0
    for group, pixels in batch.views.items():
        count = pixels.shape[1] if pixels.dim() == 5 else 1
        several = [sample_keys(view_seed(seed, number + view), batch.slots) for view in range(count)]
        keys[group] = torch.stack(several, dim=1) if pixels.dim() == 5 else several[0]
        number += count
    return keys


@functools.lru_cache(maxsize=64)
def view_seed(seed: int, number: int) -> int:
    """Seed of the view with this number; the first view's is `seed` itself."""
    return derive_seed(seed, number) if number else seed


def outputs_of(
    call: Callable[..., Outputs], task: TaskModule, part: Batch, key_seed: int, patch: Pair | None
) -> Outputs:
    """A task's outputs for a part of a batch in training; `call` is the task itself or the engine around it."""
    views, keys = normalised_views(part, task.preprocess), view_keys(part, key_seed)
    with per_step(task, keys=next(iter(keys.values())), patch=patch):
        return call(views, part.targets, part.weights, keys)
