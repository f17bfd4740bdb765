"""Shards used both to train and to evaluate a model, from the indexes of a pipeline's data sets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from pipeline.shards.index import HASH_DIGITS, DatasetIndex
from pipeline.train.job import Dataset

SHOWN = 3  # stages named in a warning


class Overlaps:
    """Collects what each stage trains on and is evaluated on; warns once per pair of data sets."""

    def __init__(self, datasets: Mapping[str, Dataset]) -> None:
        self._datasets = datasets
        self._stages: dict[tuple[str, str], list[str]] = {}  # (trained on, evaluated on) -> stages

    def add(self, stage: str, trained: Iterable[str], judged: str) -> None:
        for name in trained:
            stages = self._stages.setdefault((name, judged), [])
            if stage not in stages:
                stages.append(stage)

    def warnings(self) -> list[str]:
        """A sentence per pair of data sets that share shards, if their indexes exist."""
        found = []
        for (trained, judged), stages in self._stages.items():
            who = ", ".join(f"stages.{stage}" for stage in stages[:SHOWN])
            who += f" and {len(stages) - SHOWN} more" if len(stages) > SHOWN else ""
            trains, is_judged = ("trains", "is evaluated") if len(stages) == 1 else ("train", "are evaluated")
            if trained == judged:
                found.append(
                    f"datasets.{judged}: {who} {trains} on it and {is_judged} on it, so the figures say little about "
                    "new images; use held-out data"
                )
            elif {trained, judged} <= self._datasets.keys():
                index = self._datasets[judged].index
                shards = shared_shards(self._datasets[trained].index, index)
                if shards:
                    found.append(
                        f"datasets.{judged}: {len(shards)} of {len(index.names)} shards "
                        f"({shards[0]}{', ...' if len(shards) > 1 else ''}) are also in datasets.{trained}, and {who} "
                        f"{trains} on one and {is_judged} on the other; remove them from one of the two"
                    )
        return found


def shared_shards(one: DatasetIndex, other: DatasetIndex) -> list[str]:
    """The names of `other`'s shards whose file or content is also in `one`; empty shards share nothing."""
    same = np.isin(_hashes(other), _hashes(one)[one.counts > 0])
    if one.url == other.url:
        same |= np.isin(np.array(other.names), np.array(one.names))
    return [other.names[number] for number in np.flatnonzero(same & (other.counts > 0))]


def _hashes(index: DatasetIndex) -> np.ndarray:
    return np.frombuffer(index.sha256.encode("ascii"), dtype=f"S{HASH_DIGITS}")
