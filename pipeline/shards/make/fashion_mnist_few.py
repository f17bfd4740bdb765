"""Subsets of Fashion-MNIST with few labels: 1 % and 5 % of its training images, the same number per class."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np

from pipeline.errors import DataError
from pipeline.shards.build import build_index
from pipeline.shards.index import DatasetIndex
from pipeline.shards.make._fashion_mnist_files import IdxFolder, located, read_split
from pipeline.shards.make._png import as_png
from pipeline.shards.make.fashion_mnist import CLASSES, SAMPLES_PER_SHARD, check_fashion_mnist
from pipeline.shards.write import TarWriter, shard_name

PER_CLASS = {"1pct": 60, "5pct": 300}  # images; the smaller set is part of the larger


def make(
    out: Path,
    *,
    src: IdxFolder = None,
    seed: Annotated[int, "seed for selecting the images"] = 0,
) -> DatasetIndex:
    """600 and 3,000 training images of Fashion-MNIST as 1pct-000000.tar and 5pct-000000.tar, with their own keys.

    None of them is among the last 5,000 (train-000011.tar), which the recipes use for validation.
    Raises DataError if no source is available, or if `src` does not have the data set.
    """
    with located(src) as folder:
        data = read_split(folder, "train")
        check_fashion_mnist(data, folder, "train")
    order = np.random.default_rng(seed).permutation(len(data.labels) - SAMPLES_PER_SHARD)
    for name, count in PER_CLASS.items():
        with TarWriter(out / shard_name(name, 0)) as tar:
            for number in balanced(order, data.labels, count):
                members = {"png": as_png(data.images[number]), "cls": str(data.labels[number]).encode()}
                tar.write(f"train-{number:05d}", members)
            tar.finish()
    return build_index(str(out), classes=CLASSES)


def balanced(order: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """The first `count` samples of each class, still in `order`. Raises DataError if a class has fewer."""
    classes = labels[order]
    ranks = np.empty(len(order), np.int64)
    for label in range(len(CLASSES)):
        of_class = np.flatnonzero(classes == label)
        if len(of_class) < count:
            raise DataError(f"{CLASSES[label]}: {len(of_class):,} training images, but {count} were asked for")
        ranks[of_class] = np.arange(len(of_class))
    return order[ranks < count]
