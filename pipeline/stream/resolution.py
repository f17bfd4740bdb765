"""The image size of a step: a pure function, so that all ranks and all restarts agree on it."""

from __future__ import annotations

from pipeline.config.training import ResolutionConfig
from pipeline.stream.draws import RESOLUTION, generator


def size_at(
    step: int, total_steps: int, base_size: tuple[int, int], resolution: ResolutionConfig, seed: int
) -> tuple[int, int]:
    """Height and width of the images of a step.

    `progressive` gives each of `sizes` an equal part of the run, in their order; `random` draws one per step from
    (seed, step). A size is the height; the width keeps the proportion of `base_size`.
    """
    if resolution.mode == "fixed":
        return base_size
    count = len(resolution.sizes)
    if resolution.mode == "progressive":
        choice = min(step * count // max(total_steps, 1), count - 1)
    else:
        choice = int(generator(seed, RESOLUTION, step).integers(count))
    height = resolution.sizes[choice]
    return height, height * base_size[1] // base_size[0]
