"""The image size of a step, as a pure function, so that all ranks and restarts agree on it."""

from __future__ import annotations

from pipeline.config.training import ResolutionConfig
from pipeline.stream.draws import RESOLUTION, generator


def size_at(
    step: int, total_steps: int, base_size: tuple[int, int], resolution: ResolutionConfig, seed: int
) -> tuple[int, int]:
    """Height and width of the images of a step.

    `progressive` uses each of `sizes` for an equal part of the run, in order; `random` draws one per step from
    (seed, step). A size is a height; the width keeps the aspect ratio of `base_size`.
    """
    if resolution.mode == "fixed":
        return base_size
    count = len(resolution.sizes)
    if resolution.mode == "progressive":
        choice = min(step * count // max(total_steps, 1), count - 1)
    else:
        choice = int(generator(seed, RESOLUTION, step).integers(count))
    return in_proportion(resolution.sizes[choice], base_size)


def in_proportion(height: int, base: tuple[int, int]) -> tuple[int, int]:
    """A height and the width that keeps the aspect ratio of `base`."""
    return height, height * base[1] // base[0]
