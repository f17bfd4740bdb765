"""Reports how many samples of a data set lack an image or a label, according to its index."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from pipeline.shards.index import DatasetIndex
from pipeline.shards.scan import first_extensions
from pipeline.targets.base import Summary

WORST = 5  # shards named one by one


def unusable_report(index: DatasetIndex) -> Iterator[str]:
    """Yields a line for the total and one for each of the worst shards per kind of target; none if nothing is missing.

    If no sample is usable, also names the members of the first ones.
    """
    kinds = [kind for kind in index.columns if unusable(index, [kind])]
    for kind in kinds:
        yield from _of_kind(index, kind)
    if not index.columns:
        yield from _of_kind(index, None)


def unusable_message(index: DatasetIndex, kinds: Iterable[str]) -> str:
    """A message: how many of all samples are unusable for these kinds, and why."""
    totals = {kind: index.totals[kind] for kind in kinds}
    number = unusable(index, totals)
    return (
        f"{number:,} of {index.num_samples:,} samples cannot be used: {_reasons(index, without_image(index), totals)}"
    )


def unusable(index: DatasetIndex, kinds: Iterable[str]) -> int:
    """How many samples lack the image or the label of one of the kinds; a lower bound for several kinds."""
    return max([without_image(index), *(index.totals[kind]["unusable"] or 0 for kind in kinds)])


def without_image(index: DatasetIndex) -> int:
    return sum(index.without_image.values())


def members_message(index: DatasetIndex) -> str:
    """A message that names the members of the first samples."""
    first = index.shards[int(np.flatnonzero(index.counts)[0])]
    return f"the samples have the members {', '.join(sorted(first_extensions(first.url)))}"


def _of_kind(index: DatasetIndex, kind: str | None) -> Iterator[str]:
    kinds = [] if kind is None else [kind]
    if not unusable(index, kinds):
        return
    yield unusable_message(index, kinds)
    if unusable(index, kinds) == index.num_samples:
        yield f"  {members_message(index)}; choose which to read with --image-key and --target KIND=MEMBER"
    if len(index.names) == 1:
        return
    bad = {i: _unusable_in(index, i, kind) for i in range(len(index.names))}
    worst = sorted((item for item in bad.items() if item[1]), key=lambda item: -item[1])
    for i, number in worst[:WORST]:
        summaries = {one: index.summary(one, i) for one in kinds}
        why = _reasons(index, index.without_image.get(i, 0), summaries)
        yield f"  {index.names[i]}: {number:,} of {int(index.counts[i]):,} samples cannot be used: {why}"
    if len(worst) > WORST:
        yield f"  and {len(worst) - WORST:,} more shards"


def _unusable_in(index: DatasetIndex, i: int, kind: str | None) -> int:
    return index.without_image.get(i, 0) if kind is None else index.columns[kind]["unusable"][i] or 0


def _reasons(index: DatasetIndex, images: int, summaries: dict[str, Summary]) -> str:
    """What samples lack, with the members that were looked for."""
    parts = {f"without image ({index.keys.image_key})": images}
    for kind, summary in summaries.items():
        members = ", ".join(index.members[kind])
        parts[f"without {kind} ({members})"] = summary["missing"] or 0
        parts[f"whose {kind} ({members}) cannot be read"] = summary["bad"] or 0
    return ", ".join(f"{number:,} {text}" for text, number in parts.items() if number)
