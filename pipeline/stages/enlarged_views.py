"""Warns, before a stage trains, about views larger than the crops they show."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from pipeline.config.data import AugmentConfig
from pipeline.config.train_stage import TrainStage
from pipeline.errors import DataError
from pipeline.images.decode import BadImage, read_header
from pipeline.images.geometry import Size
from pipeline.shards.members import Unusable
from pipeline.stream.read import BadSample, SampleReader
from pipeline.stream.source import Source

LOOKED_AT = 16  # first images of a data set, whose sizes stand for the rest


def enlarged_views(stage: TrainStage, sources: Sequence[Source], size: Size) -> Iterator[str]:
    """A sentence per view group and data set whose crops are enlarged; `size` is the size of the model's images.

    Silent for tasks that see each sample once.
    """
    groups = stage.task.view_groups()
    if sum(group.count for group in groups.values()) == 1:
        return
    for source in sources:
        sizes = first_sizes(source)
        for name, group in groups.items():
            view, augment = group.size or size, group.augment(source.augment)
            share = sum(enlarged_share(image, view, augment) for image in sizes) / max(len(sizes), 1)
            if round(100 * share):
                heights, widths = zip(*sizes, strict=True)
                yield (
                    f"task.views.{name}: {100 * share:.0f} % of its crops of {source.name} have fewer pixels than the "
                    f"view's {view[0]} x {view[1]} and are enlarged (the first {len(sizes)} images are up to "
                    f"{max(heights)} x {max(widths)}); a smaller size or a larger scale avoids it"
                )


def enlarged_share(image: Size, view: Size, augment: AugmentConfig) -> float:
    """Fraction of an image's crops that have fewer pixels than the view and are enlarged to it."""
    least, most = augment.scale if augment.crop == "random_resized" else (1.0, 1.0)
    needed = view[0] * view[1] / (image[0] * image[1])  # fraction of the image's area
    if least == most:
        return float(least < needed)
    return min(max((needed - least) / (most - least), 0.0), 1.0)


def first_sizes(source: Source) -> list[Size]:
    """Height and width of the images in a data set's first samples; empty if these cannot be read."""
    index = source.index
    shard = int(np.flatnonzero(index.counts)[0])
    rows = np.arange(min(int(index.counts[shard]), LOOKED_AT))
    sizes = []
    try:
        samples = SampleReader(index, source.config.cache).read(np.full(len(rows), shard), rows)
    except DataError:  # the ranks will report it
        return []
    for number in rows.tolist():
        try:
            header = read_header(source.keys.image_of(samples.members(number)[1]))
        except (BadImage, BadSample, Unusable):
            continue
        sizes.append((header.height, header.width))
    return sizes
