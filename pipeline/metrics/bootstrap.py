"""95 % confidence intervals by a Poisson bootstrap over images (Hanley and MacGibbon 2006).

Images are drawn whole, because the objects, keypoints and pixels of one image are not independent. An image's draws
depend only on its slot, so that intervals are the same on any number of ranks.

Legend: R resamples, N images, S sums.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

Interval = tuple[float, float]

RESAMPLES = 200
SEED = 0
FEWEST = 20  # images; the intervals of fewer would be too narrow
ENDS = 0.025, 0.975


def draws(slots: Sequence[int]) -> np.ndarray:
    """int64 [R, N]: how often each resample has each image."""
    found = [np.random.default_rng((SEED, slot)).poisson(1.0, RESAMPLES) for slot in slots]
    return np.stack(found, axis=1) if found else np.zeros((RESAMPLES, 0), np.int64)


def intervals(resampled: Mapping[str, np.ndarray], images: int) -> dict[str, Interval]:
    """The intervals of measures from their values [R] in each resample, NaN where they are undefined.

    Empty for too few images. A measure without variation, such as a share of 100 %, or that is undefined in a resample
    has none: too few images decide about it.
    """
    if images < FEWEST:
        return {}
    ends = {name: np.quantile(values, ENDS).tolist() for name, values in resampled.items()}
    return {name: (low, high) for name, (low, high) in ends.items() if low < high}


class ResampledSums:
    """Sums [S] over the images of each resample, which add up over images and ranks."""

    def __init__(self, count: int) -> None:
        self.images, self.sums = 0, np.zeros((RESAMPLES, count))

    def add(self, slot: int, values: np.ndarray) -> None:
        """Add the sums [S] of an image."""
        self.images += 1
        self.sums += draws([slot])[:, :1] * values

    def merge(self, other: ResampledSums) -> None:
        self.images, self.sums = self.images + other.images, self.sums + other.sums

    def intervals(self, measures: Callable[[np.ndarray], Mapping[str, float]]) -> dict[str, Interval]:
        """The intervals of `measures` of sums [S]."""
        rows = [measures(row) for row in self.sums]
        names = dict.fromkeys(name for row in rows for name in row)
        resampled = {name: np.array([row.get(name, np.nan) for row in rows]) for name in names}
        return intervals(resampled, self.images)
