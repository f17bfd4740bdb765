"""Small sets of real shards, and loaders over them whose workers run in this process."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.config.data import SQUASH, AugmentConfig, DataConfig, DatasetConfig
from pipeline.config.training import ResolutionConfig
from pipeline.config.views import IMAGE, ViewGroup
from pipeline.shards.build import build_index
from pipeline.shards.index import DatasetIndex
from pipeline.shards.write import TarWriter
from pipeline.stream.batch import Batch, assemble
from pipeline.stream.batch_plan import TrainBatchPlan
from pipeline.stream.loader import EvalLoader, TrainLoader
from pipeline.stream.resolution import size_at
from pipeline.stream.source import Source, build_mixture
from pipeline.targets.class_id import ClassId

NUM_CLASSES = 10
PLAIN = AugmentConfig(crop="none", flip=False)
Spoil = Callable[[int, dict[str, bytes]], dict[str, bytes]]


def encode(pixels: np.ndarray, format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format, **options)
    return file.getvalue()


def write_shards(folder: Path, sizes: Sequence[int], side: int = 8, spoil: Spoil | None = None) -> DatasetIndex:
    """Shards of grey PNGs; sample i (over all shards) has key `s<i>`, label i mod 10 and grey level i mod 251."""
    number = 0
    for shard, size in enumerate(sizes):
        writer = TarWriter(folder / f"train-{shard:06d}.tar")
        for _ in range(size):
            pixels = np.full((side, side), number % 251, np.uint8)
            pixels[0, 0] = 255  # so that flips and crops show
            members = {"png": encode(pixels), "cls": str(number % NUM_CLASSES).encode()}
            writer.write(f"s{number}", spoil(number, members) if spoil else members)
            number += 1
        writer.finish()
    return build_index(str(folder), workers=1)


def fixed_size(height: int = 8, width: int = 8) -> Callable[[int], tuple[int, int]]:
    return partial(size_at, total_steps=100, base_size=(height, width), resolution=ResolutionConfig(), seed=0)


def source(index: DatasetIndex, augment: AugmentConfig = PLAIN, **settings: object) -> Source:
    """A data set of its own in a stream."""
    return Source(
        **{
            "name": "t",
            "index": index,
            "config": DatasetConfig(shards="unused"),
            "augment": augment,
            "targets": {"class_id": ClassId(("cls",), tuple(range(NUM_CLASSES)), NUM_CLASSES)},
            **settings,
        }
    )


def in_process(
    data: DatasetIndex | list[Source],
    *,
    world_size: int,
    workers: int,
    steps: int,
    global_batch_size: int,
    lanes: int,
    window: int = 4,
    seed: int = 0,
    start_slot: int = 0,
    augment: AugmentConfig = PLAIN,
    quarantine_path: Path | None = None,
    views: Mapping[str, ViewGroup] = IMAGE,
) -> list[list[Batch]]:
    """The batches of every rank, [steps][ranks], with all loader workers' code run one after the other."""
    sources = data if isinstance(data, list) else [source(data, augment)]
    mixture = build_mixture(sources, DataConfig(train="t", lanes=lanes, window=window), seed)
    ranks = []
    for rank in range(world_size):
        plan = TrainBatchPlan(
            sources=sources,
            mixture=mixture,
            channels=1,
            targets=["class_id"],
            views=views,
            rank=rank,
            world_size=world_size,
            quarantine_path=quarantine_path,
            global_batch_size=global_batch_size,
            size_at=fixed_size(),
            start_slot=start_slot,
        )
        writers = [plan.row_writer(worker, workers) for worker in range(workers)]
        batches = []
        for step in range(plan.first, plan.first + steps):
            layout = plan.layout(step)
            memory = np.empty(layout.bytes, np.uint8)
            batches.append(assemble(memory, layout, [writer.write(step, memory) for writer in writers], step))
        ranks.append(batches)
        for writer in writers:
            writer.close()
    return [list(step) for step in zip(*ranks, strict=True)]


def train_loader(sources: DatasetIndex | list[Source], *, data: dict | None = None, **settings: object) -> TrainLoader:
    """The real loader; keyword arguments replace the defaults."""
    defaults = {
        "channels": 1,
        "targets": ["class_id"],
        "views": IMAGE,
        "seed": 0,
        "rank": 0,
        "world_size": 1,
        "global_batch_size": 8,
        "size_at": fixed_size(),
    }
    config = DataConfig(
        **{"train": "t", "augment": PLAIN, "lanes": 4, "window": 4, "loader_workers": 0, **(data or {})}
    )
    if isinstance(sources, DatasetIndex):
        sources = [source(sources, config.augment)]
    return TrainLoader(sources, config, **{**defaults, **settings})


def eval_loader(source: Source, **settings: object) -> EvalLoader:
    """The real loader of one rank; keyword arguments replace the defaults."""
    defaults = {
        "channels": 1,
        "targets": list(source.targets),
        "views": IMAGE,
        "size": (8, 8),
        "plain": SQUASH,
        "rank": 0,
        "world_size": 1,
        "batch_size": 8,
        "loader_workers": 0,
    }
    return EvalLoader(source, **{**defaults, **settings})


class Kit:
    """What the tests of this folder share."""

    encode = staticmethod(encode)
    write_shards = staticmethod(write_shards)
    fixed_size = staticmethod(fixed_size)
    source = staticmethod(source)
    in_process = staticmethod(in_process)
    train_loader = staticmethod(train_loader)
    eval_loader = staticmethod(eval_loader)
    num_classes = NUM_CLASSES
    plain = PLAIN


@pytest.fixture(scope="session")
def kit() -> type[Kit]:
    return Kit


@pytest.fixture(scope="session")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> DatasetIndex:
    """73 samples in five shards, of which one is empty and one holds a single sample."""
    return write_shards(tmp_path_factory.mktemp("uneven"), [20, 0, 1, 35, 17])
