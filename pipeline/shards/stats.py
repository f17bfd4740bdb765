"""Statistics of a data set: counts, bytes, formats, image sizes and classes; and a plot of them."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from pipeline.errors import DataError
from pipeline.images.decode import BadImage, read_header
from pipeline.shards.index import ShardInfo
from pipeline.shards.members import Keys, Unusable
from pipeline.shards.named_sets import NamedSet
from pipeline.shards.parallel import map_shards
from pipeline.shards.samples import shard_samples
from pipeline.targets import tool_targets
from pipeline.targets.base import BadLabel, Target

PERCENTILES = 0, 5, 50, 95, 100
MOST_BARS = 40  # classes drawn as separate bars
Numbers: TypeAlias = "array[int]"
NO_CLASSES: dict[str, Any] = {"per_class": {}, "counted": "samples"}


@dataclass
class ShardStats:
    """Statistics of one shard; `sizes` are rows of image height, width and file bytes."""

    formats: Counter[str] = field(default_factory=Counter)
    labels: dict[str, Counter[int]] = field(default_factory=dict)  # by kind of target: class -> what is counted
    without: Counter[str] = field(default_factory=Counter)  # samples without a usable label, by kind
    figures: dict[tuple[str, str], Numbers] = field(default_factory=dict)  # by kind of target and name
    parts: dict[str, Numbers] = field(default_factory=dict)  # by kind
    sizes: list[tuple[int, int, int]] = field(default_factory=list)
    without_image: int = 0
    unreadable: int = 0

    def add_label(self, target: Target, value: Any) -> None:
        self.labels[target.kind].update(target.count(value))
        for name, numbers in target.figures(value).items():
            self.figures.setdefault((target.kind, name), array("q")).extend(numbers)
        self.parts.setdefault(target.kind, array("q")).extend(target.parts(value))

    def add(self, other: ShardStats) -> None:
        self.formats += other.formats
        self.without += other.without
        for kind, labels in other.labels.items():
            self.labels[kind] += labels
        for name, numbers in other.figures.items():
            self.figures.setdefault(name, array("q")).extend(numbers)
        for kind, numbers in other.parts.items():
            self.parts.setdefault(kind, array("q")).extend(numbers)
        self.sizes += other.sizes
        self.without_image += other.without_image
        self.unreadable += other.unreadable


@dataclass(frozen=True)
class StatsTask:
    keys: Keys
    targets: Sequence[Target]

    def __call__(self, shard: ShardInfo) -> ShardStats:
        stats = ShardStats(labels={target.kind: Counter() for target in self.targets})
        for _, _, members, _ in shard_samples(shard):
            size = None
            try:
                image = self.keys.image_of(members or {})
                header = read_header(image)
            except Unusable:
                stats.without_image += 1
            except BadImage:
                stats.unreadable += 1
            else:
                size = (header.height, header.width)
                stats.formats[f"{header.format} {header.mode}"] += 1
                stats.sizes.append((*size, len(image)))
            for target in self.targets:
                try:
                    stats.add_label(target, target.decode(members or {}, size))
                except (BadLabel, DataError):
                    stats.without[target.kind] += 1
        return stats


def dataset_stats(one: NamedSet, workers: int | None = None) -> tuple[dict[str, Any], np.ndarray]:
    """Statistics for printing and JSON, and [num_images, 3] of height, width and bytes; decodes only image headers.

    Raises DataError if a shard cannot be read.
    """
    index = one.open()
    # Labels as stored in the shards, regardless of class names.
    targets = tool_targets(
        {target.kind: target.members for target in one.targets(index)}, None, one.config.targets.given()
    )
    total = ShardStats(labels={target.kind: Counter() for target in targets})
    for stats in map_shards(StatsTask(one.keys(index), targets), index.shards, label="reading", workers=workers):
        total.add(stats)
    sizes = np.array(total.sizes, np.int64).reshape(-1, 3)
    return {
        "shards": len(index.names),
        "samples": index.num_samples,
        "bytes": int(index.sizes.sum()),
        "samples_per_shard": spread(index.counts),
        "images": len(sizes),
        "without_image": total.without_image,
        "unreadable_images": total.unreadable,
        "formats": dict(total.formats.most_common()),
        "height": spread(sizes[:, 0]),
        "width": spread(sizes[:, 1]),
        "image_bytes": spread(sizes[:, 2]),
        "targets": {
            target.kind: {
                "without": total.without[target.kind],
                **class_stats(
                    total.labels[target.kind], target, one.classes(index, [target.kind]).get(target.kind, [])
                ),
                **figures_of(total, target.kind),
            }
            for target in targets
        },
    }, sizes


def class_stats(counts: Counter[int], target: Target, names: Sequence[str]) -> dict[str, Any]:
    """Counts per class; empty for targets without classes."""
    if not target.classed:
        return {}
    named = {names[label] if label < len(names) else str(label): count for label, count in sorted(counts.items())}
    return {
        "classes": len(named),
        "counted": target.counted,
        "spread": spread(np.array(list(named.values()), np.int64)),
        "per_class": named,
    }


def figures_of(total: ShardStats, kind: str) -> dict[str, Any]:
    """The spread of each figure of a kind of target, and the share of its parts that are duplicates."""
    found: dict[str, Any] = {
        name: spread(np.array(numbers)) for (of, name), numbers in total.figures.items() if of == kind
    }
    if parts := total.parts.get(kind):
        found["duplicates"] = 1 - len(np.unique(parts)) / len(parts)
    return found


def spread(values: np.ndarray) -> dict[str, int]:
    """Minimum, maximum and three percentiles; empty without values."""
    if not len(values):
        return {}
    return {f"p{p}": int(value) for p, value in zip(PERCENTILES, np.percentile(values, PERCENTILES), strict=True)}


def draw_histograms(stats: dict[str, Any], sizes: np.ndarray, path: Path) -> None:
    """Three histograms: image sizes, file sizes, samples per class."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.8), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for column, name in ((0, "height"), (1, "width")):
        left.hist(sizes[:, column], bins=40, histtype="step", label=name)
    left.set(xlabel="pixels", ylabel="images", title=f"{stats['images']:,} images")
    left.legend(frameon=False)
    middle.hist(sizes[:, 2] / 1e3, bins=40)
    middle.set(xlabel="kilobytes per image", title=f"{stats['bytes'] / 1e6:,.1f} MB in {stats['shards']:,} shards")
    classed = next((one for one in stats["targets"].values() if "per_class" in one), NO_CLASSES)
    counts = sorted(classed["per_class"].items(), key=lambda item: -item[1])
    if len(counts) <= MOST_BARS:
        right.bar(range(len(counts)), [count for _, count in counts])
        names = [name[:18] for name, _ in counts]
        right.set_xticks(range(len(counts)), names, rotation=90, fontsize=7, parse_math=False)  # "$" is literal here
    else:
        right.fill_between(range(len(counts)), [count for _, count in counts], step="mid")
        right.set_xlabel("class, most frequent first")
    right.set(ylabel=classed["counted"], title=f"{len(counts):,} classes", ylim=(0, None))
    for axes in (left, middle, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
