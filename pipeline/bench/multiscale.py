"""Cost of a random image size per step, compared with training at fixed sizes."""

from __future__ import annotations

import math
import random
import statistics
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from pipeline.bench.step_process import Contender, StepJob
from pipeline.models.spec import whole_patches
from pipeline.models.variants import build_spec


def measure(
    variant: str, sizes: list[int], *, batch_size: int, threads: int, rounds: int, precision: str = "fp32"
) -> dict[str, Any]:
    """Time of a round of steps, one at each size in random order, relative to one step of each fixed-size training.

    This is the cost over the token-weighted mean of the fixed sizes' seconds per token. One model of the middle size
    trains at all sizes, with positions interpolated on the fly; each fixed size has its own model. Each model has its
    own process.
    """
    sizes = sorted(sizes)
    spec = build_spec(variant, image_size=sizes[len(sizes) // 2], num_classes=1000)
    order = random.Random(0)
    fixed: dict[int, list[float]] = {size: [] for size in sizes}
    mixed: dict[int, list[float]] = {size: [] for size in sizes}
    with ExitStack() as stack:
        job = StepJob("ours", spec, precision, False, "none", threads)
        multi = stack.enter_context(Contender(job))
        alone = {}
        for size in sizes:
            grid = whole_patches((size, size), spec.backbone.patch)
            own = spec.with_backbone(grid=grid)
            alone[size] = stack.enter_context(Contender(replace(job, spec=own)))
        for number in range(1 + rounds):
            for size in order.sample(sizes, len(sizes)):
                seconds = alone[size].step_s(batch_size), multi.step_s(batch_size, size)
                if number:  # the first round warms up
                    fixed[size].append(seconds[0])
                    mixed[size].append(seconds[1])
    ratios = [
        sum(mixed[size][number] for size in sizes) / sum(fixed[size][number] for size in sizes)
        for number in range(rounds)
    ]
    patches = [math.prod(whole_patches((size, size), spec.backbone.patch)) for size in sizes]
    return {
        "sizes": sizes,
        "fixed_seconds": [statistics.median(fixed[size]) for size in sizes],
        "multiscale_seconds": [statistics.median(mixed[size]) for size in sizes],
        "fixed_microseconds_per_patch": [
            1e6 * statistics.median(fixed[size]) / (batch_size * count)
            for size, count in zip(sizes, patches, strict=True)
        ],
        "cost": statistics.median(ratios) - 1,
        "rounds": [ratio - 1 for ratio in ratios],
    }
