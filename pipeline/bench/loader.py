"""Images per second of our loader and of others, with the same shards, cores, crop, flip and batch size."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from pipeline.bench import loader_peers as peers
from pipeline.bench.photos import MASK_CLASSES
from pipeline.bench.processes import cpu_seconds
from pipeline.config.data import AugmentConfig, DataConfig, DatasetConfig
from pipeline.config.training import ResolutionConfig
from pipeline.config.views import IMAGE
from pipeline.cpus import usable_cpus
from pipeline.shards.index import DatasetIndex
from pipeline.shards.parallel import track
from pipeline.stream.batch_plan import TrainBatchPlan
from pipeline.stream.loader import TrainLoader
from pipeline.stream.resolution import size_at
from pipeline.stream.rows import WrittenRows
from pipeline.stream.source import Source, build_mixture
from pipeline.targets.base import Target
from pipeline.targets.class_id import ClassId
from pipeline.targets.mask import Mask

BATCH_SIZE = 64
WARM_UP_BATCHES = 6
LANES, WINDOW = 16, 64
CROP = AugmentConfig(crop="random_resized", flip=True)

OURS = "ours", "ours_in_threads", "ours_with_masks"
FIGURES = "images_per_s", "images_per_cpu_s"

Loader = Callable[[ExitStack], Iterator[int]]  # yields the number of images of each batch


def measure(
    index: DatasetIndex, masks: DatasetIndex | None, image_size: int, *, workers: int, rounds: int, seconds: float
) -> dict[str, Any]:
    """Median images/s of every installed loader, over alternating rounds; each round restarts the loaders.

    Ours also reads `masks`, the same kind of images with class maps. Images per CPU-second are for machines with other
    load. Others' loaders that do not run, for example because a library is missing, are left out; `skipped` says why.
    """
    loaders: dict[str, Loader] = {
        "ours": partial(ours, index, image_size, workers),
        "ours_in_threads": partial(ours_in_threads, index, image_size, workers),
    }
    if masks is not None:
        loaders["ours_with_masks"] = partial(ours, masks, image_size, workers, kind="mask")
    urls = [shard.url for shard in index.shards]
    for name, package, peer in (
        ("webdataset_pil", "webdataset", peers.webdataset_pil),
        ("webdataset_torchvision", "webdataset", peers.webdataset_torchvision),
        ("dali_cpu", "nvidia.dali", peers.dali),
    ):
        if installed(package):
            loaders[name] = partial(peer, urls, image_size, workers, BATCH_SIZE)
    runs, skipped = speeds_of(loaders, rounds, seconds)
    result: dict[str, Any] = {}
    for name, mine in runs.items():
        result[name] = {key: statistics.median(figures[key] for figures in mine) for key in FIGURES}
        result[name]["ours_is_faster_by"] = {
            key: statistics.median(a[key] / b[key] for a, b in zip(runs["ours"], mine, strict=True)) for key in FIGURES
        }
        result[name]["rounds"] = [figures["images_per_s"] for figures in mine]
    return result | {"skipped": skipped, "settings": settings_of_run(index, image_size, workers)}


def speeds_of(
    loaders: dict[str, Loader], rounds: int, seconds: float
) -> tuple[dict[str, list[dict[str, float]]], dict[str, str]]:
    """The speeds of each loader, by round, and the reasons why others' loaders do not run."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in loaders}
    skipped: dict[str, str] = {}
    plan = [name for _ in range(rounds) for name in loaders]
    for name in track(iter(plan), len(plan), "loaders", "runs"):
        if name in skipped:
            continue
        try:
            runs[name].append(speed_of(loaders[name], seconds))
        except (ImportError, OSError, RuntimeError) as error:
            if name in OURS:
                raise
            skipped[name] = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return {name: found for name, found in runs.items() if name not in skipped}, skipped


def settings_of_run(index: DatasetIndex, image_size: int, workers: int) -> dict[str, Any]:
    return {
        "image_size": image_size,
        "workers": workers,
        "batch_size": BATCH_SIZE,
        "cpus": usable_cpus(),
        "samples": index.num_samples,
        "mean_kilobytes": round(int(index.sizes.sum()) / index.num_samples / 1000, 1),
    }


def speed_of(load: Loader, seconds: float) -> dict[str, float]:
    """Images per second and per CPU-second, over all its processes, of a warmed-up loader.

    Batches queued when the clock starts are few compared with those produced meanwhile.
    """
    with ExitStack() as stack:
        batches = load(stack)
        for _ in range(WARM_UP_BATCHES):
            next(batches)
        began, cpu, images = time.perf_counter(), cpu_seconds(), 0
        while time.perf_counter() - began < seconds:
            images += next(batches)
        elapsed = time.perf_counter() - began
        return {"images_per_s": images / elapsed, "images_per_cpu_s": images / (cpu_seconds() - cpu)}


def installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:
        return False


def ours(index: DatasetIndex, image_size: int, workers: int, stack: ExitStack, kind: str = "class_id") -> Iterator[int]:
    data = DataConfig(train="bench", lanes=LANES, window=WINDOW, loader_workers=workers, augment=CROP)
    loader = stack.enter_context(train_loader(index, image_size, data, kind=kind))
    return (len(batch.keys) for batch in loader)


def train_loader(
    index: DatasetIndex, image_size: int, data: DataConfig, start_slot: int = 0, kind: str = "class_id"
) -> TrainLoader:
    """Our loader for a single rank."""
    return TrainLoader(
        [source(index)],
        data,
        channels=3,
        targets=(kind,),
        views=IMAGE,
        seed=0,
        rank=0,
        world_size=1,
        global_batch_size=BATCH_SIZE,
        size_at=fixed_size(image_size),
        start_slot=start_slot,
    )


def ours_in_threads(index: DatasetIndex, image_size: int, workers: int, stack: ExitStack) -> Iterator[int]:
    """The same work in threads instead of processes, to show why the loader does not use threads."""
    data = DataConfig(train="bench", lanes=LANES, window=WINDOW)
    plan = TrainBatchPlan(
        sources=[source(index)],
        mixture=build_mixture([source(index)], data, seed=0),
        channels=3,
        targets=("class_id",),
        views=IMAGE,
        rank=0,
        world_size=1,
        quarantine_path=None,
        global_batch_size=BATCH_SIZE,
        size_at=fixed_size(image_size),
        start_slot=0,
    )
    writers = [stack.enter_context(closing(plan.row_writer(worker, workers))) for worker in range(workers)]
    pool = stack.enter_context(ThreadPoolExecutor(workers))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    stack.callback(torch.set_num_threads, threads)

    def batches() -> Iterator[int]:
        step = 0
        under_way: list[list[Future[WrittenRows]]] = []
        while True:
            while len(under_way) < 3:
                memory = np.empty(plan.layout(step).bytes, np.uint8)
                under_way.append([pool.submit(writer.write, step, memory) for writer in writers])
                step += 1
            yield sum(len(part.result().rows) for part in under_way.pop(0))

    return batches()


def source(index: DatasetIndex) -> Source:
    targets: dict[str, Target] = {"class_id": ClassId(index.members["class_id"])}
    targets["mask"] = Mask(Mask.default_members, tuple(range(MASK_CLASSES)), MASK_CLASSES)
    return Source("bench", index, DatasetConfig(shards="bench"), CROP, 1, targets)


def fixed_size(image_size: int) -> Any:
    return partial(size_at, total_steps=1, base_size=(image_size, image_size), resolution=ResolutionConfig(), seed=0)
