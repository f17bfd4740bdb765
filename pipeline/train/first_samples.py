"""Stopping a run whose data are all unusable before it trains only on stand-ins."""

from __future__ import annotations

from collections import Counter

import torch
import torch.distributed as dist

from pipeline.errors import DataError
from pipeline.shards.bad_samples import in_short
from pipeline.stream.batch import Batch
from pipeline.stream.quarantine import most_frequent

ENOUGH = 8  # samples: at the allowed share of bad samples, all of them are bad in one of a hundred million runs


class FirstSamples:
    """Checks batches until any rank finds a good sample; free of cost afterwards."""

    def __init__(self, name: str, device: torch.device) -> None:
        self._name, self._device = name, device
        self._found, self._seen = False, 0
        self._reasons: Counter[str] = Counter()

    def look_collective(self, batch: Batch, *, last: bool) -> None:
        """Check the next batch. Raises DataError on every rank if none of the first samples is good.

        `last` means that no batch follows, so the samples so far decide.
        """
        if self._found:
            return
        self._reasons.update(map(in_short, batch.reasons))
        good = int((batch.weights > 0).sum())
        counts = torch.tensor([good, len(batch.keys)], device=self._device)
        dist.all_reduce(counts)
        good, seen = counts.tolist()
        self._found, self._seen = good > 0, self._seen + seen
        if self._found or (self._seen < ENOUGH and not last):
            return
        every: list[Counter[str]] = [Counter()] * dist.get_world_size()
        dist.all_gather_object(every, self._reasons)
        reasons = most_frequent(sum(every, Counter[str]()))
        raise DataError(
            f"{self._name}: all of the first {self._seen} samples are bad: {reasons}; check the shards with `minivit "
            "shards verify CONFIG.yaml`, and the image_key and targets of the data set"
        )
