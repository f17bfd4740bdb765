"""Labelled fractals of any resolution, drawn by formula: no photographs, no licence, no download.

Each class is a random iterated function system, each sample an attractor of it with slightly perturbed parameters
(FractalDB: Kataoka et al. 2020, "Pre-training without Natural Images"; for ViTs: Nakashima et al. 2022).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np

from pipeline.errors import DataError
from pipeline.shards.build import build_index
from pipeline.shards.index import DatasetIndex
from pipeline.shards.make._png import as_png
from pipeline.shards.parallel import Workers, map_shards
from pipeline.shards.plan import agree_on_plan
from pipeline.shards.write import TarWriter, shard_name

POINTS_PER_PIXEL = 2.0  # points of the chaos game
WALKERS = 512  # points iterated in parallel; their first steps are not drawn
WARM_UP = 20
FILL_RATE = 0.2  # a system whose attractor covers less of a 32 px image is redrawn, as in the paper
SHAKE = 0.2  # instances scale each parameter by 1 +- this, at most
MAX_TRIES = 200


@dataclass(frozen=True)
class FractalShardWriter:
    """Draws one shard."""

    out: str
    prefix: str
    classes: int
    size: int
    channels: int
    seed: int

    def __call__(self, job: tuple[int, int, int]) -> None:
        number, first, stop = job
        with TarWriter(Path(self.out) / shard_name(self.prefix, number)) as tar:
            for sample in range(first, stop):
                label = sample % self.classes
                rng = np.random.default_rng([self.seed, 1, sample])
                image = draw_attractor(shaken(fractal_class(self.seed, label), rng), self.size, self.channels, rng)
                tar.write(f"{sample:08d}", {"png": as_png(image), "cls": str(label).encode()})
            tar.finish()


def make(
    out: Path,
    *,
    classes: Annotated[int, "number of classes, each a random iterated function system"] = 100,
    per_class: Annotated[int, "images per class"] = 100,
    size: Annotated[int, "side of the images, in pixels"] = 224,
    channels: Annotated[int, "1 for grey images, 3 for random colours"] = 3,
    samples_per_shard: Annotated[int, "images per shard"] = 1_000,
    prefix: Annotated[str, "shards are named PREFIX-000000.tar and so on"] = "train",
    seed: Annotated[int, "seed for everything drawn at random"] = 0,
    workers: Workers = None,
) -> DatasetIndex:
    """Fractals as shards, cycling through the classes.

    Existing shards are kept: the same call resumes where it stopped.

    Raises DataError for invalid settings, or if `out` has shards with the same prefix and other settings.
    """
    settings = {"classes": classes, "per-class": per_class, "size": size, "samples-per-shard": samples_per_shard}
    wrong = [name for name, value in settings.items() if value < 1]
    if wrong or channels not in (1, 3) or not re.fullmatch(r"[A-Za-z0-9_-]+", prefix):
        raise DataError(
            f"{', '.join(wrong) or 'channels or prefix'}: expected numbers above 0, channels 1 or 3, and a prefix of "
            "letters, digits, '_' and '-'"
        )
    agree_on_plan(out, prefix, settings | {"channels": channels, "seed": seed})
    total = classes * per_class
    jobs = [
        (number, first, min(first + samples_per_shard, total))
        for number, first in enumerate(range(0, total, samples_per_shard))
    ]
    missing = [job for job in jobs if not (out / shard_name(prefix, job[0])).is_file()]
    task = FractalShardWriter(str(out), prefix, classes, size, channels, seed)
    for _ in map_shards(task, missing, label=f"drawing {prefix}", workers=workers):
        pass
    names = [f"fractal-{label:04d}" for label in range(classes)]
    return build_index(f"{out}/{prefix}-{{000000..{len(jobs) - 1:06d}}}.tar", classes=names, workers=workers)


def fractal_class(seed: int, label: int) -> np.ndarray:
    """Affine maps [n, 6] (a, b, c, d, e, f): x' = a x + b y + e, y' = c x + d y + f; n in 2..8."""
    for attempt in range(MAX_TRIES):
        rng = np.random.default_rng([seed, 0, label, attempt])
        maps = rng.uniform(-1, 1, size=(int(rng.integers(2, 9)), 6))
        strongest = np.linalg.norm(maps[:, :4].reshape(-1, 2, 2), ord=2, axis=(1, 2), keepdims=False)
        maps[:, :4] *= np.minimum(1, 0.95 / strongest)[:, None]  # contracting, so that the attractor is bounded
        if (draw_attractor(maps, 32, 1, rng) > 0).mean() >= FILL_RATE:
            break
    return maps


def shaken(maps: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An instance of a class: scales one of the six parameters in all its maps, as in the paper."""
    instance = maps.copy()
    instance[:, int(rng.integers(6))] *= rng.uniform(1 - SHAKE, 1 + SHAKE)
    return instance


def draw_attractor(maps: np.ndarray, size: int, channels: int, rng: np.random.Generator) -> np.ndarray:
    """The attractor by the chaos game, uint8 [size, size, channels], white or coloured on black."""
    weights = np.abs(maps[:, 0] * maps[:, 3] - maps[:, 1] * maps[:, 2]) + 1e-3
    steps = WARM_UP + int(POINTS_PER_PIXEL * size * size / WALKERS) + 1
    choices = rng.choice(len(maps), size=(steps, WALKERS), p=weights / weights.sum())
    point = np.zeros((2, WALKERS))
    points = np.empty((steps, 2, WALKERS))
    for step, chosen in enumerate(choices):
        a, b, c, d, e, f = maps[chosen].T
        point = np.stack([a * point[0] + b * point[1] + e, c * point[0] + d * point[1] + f])
        points[step] = point
    x, y = points[WARM_UP:].transpose(1, 0, 2).reshape(2, -1)
    columns, rows = (((axis - axis.min()) / max(np.ptp(axis), 1e-9) * (size - 1)).astype(int) for axis in (x, y))
    hits = np.bincount(rows * size + columns, minlength=size * size).reshape(size, size)
    light = np.sqrt(hits / max(np.percentile(hits[hits > 0], 98), 1)).clip(0, 1)
    colour = rng.uniform(0.4, 1, size=channels) if channels == 3 else np.ones(1)
    return np.round(light[:, :, None] * colour * 255).astype(np.uint8)
