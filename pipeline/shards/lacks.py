"""Reporting how many samples of a data set lack an image or a label, as its index counted them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pipeline.shards.index import DatasetIndex
from pipeline.shards.members import Keys
from pipeline.shards.scan import Lacks, first_extensions

WORST = 5  # shards named one by one


def tell_lacks(index: DatasetIndex) -> Iterator[str]:
    """One line for the total and one for each of the worst shards; none if all samples have both.

    Where no sample can be used, the first ones' members are named too.
    """
    if not index.lacks:
        return
    yield lacking(index)
    if index.total_lacks.unusable == index.num_samples:
        first = index.shards[int(np.flatnonzero(index.counts)[0])]
        names = ", ".join(sorted(first_extensions(first.url)))
        yield f"  the samples hold the members {names}; say with --image-key and --label-key which to read"
    if len(index.names) == 1:
        return
    worst = sorted(index.lacks.items(), key=lambda item: -item[1].unusable)
    for i, lacks in worst[:WORST]:
        yield f"  {index.names[i]}: {unusable(lacks, int(index.counts[i]))}: {reasons(lacks, index.keys)}"
    if len(worst) > WORST:
        yield f"  and {len(worst) - WORST:,} more shards"


def lacking(index: DatasetIndex) -> str:
    """How many of all samples lack something, and what."""
    return f"{unusable(index.total_lacks, index.num_samples)}: {reasons(index.total_lacks, index.keys)}"


def unusable(lacks: Lacks, samples: int) -> str:
    return f"{lacks.unusable:,} of {samples:,} samples cannot be used"


def reasons(lacks: Lacks, keys: Keys) -> str:
    """What samples lack, by the members that were looked for."""
    parts = {
        f"without image ({keys.image_key})": lacks.image,
        f"without label ({keys.label})": lacks.label,
        f"whose label ({keys.label}) is not a class number": lacks.number,
    }
    return ", ".join(f"{number:,} {text}" for text, number in parts.items() if number)
