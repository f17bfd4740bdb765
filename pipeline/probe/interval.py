"""Confidence intervals of proportions."""

from __future__ import annotations

import math
from collections.abc import Mapping

from pipeline.metrics.accuracy import ACCURACIES

Z = 1.959963984540054  # standard normal quantile for 95 %


def wilson(right: int, total: int) -> tuple[float, float]:
    """The 95 % confidence interval of the proportion of `right` in `total` independent samples (Wilson 1927)."""
    share, spread = right / total, Z * Z / total
    centre = (share + spread / 2) / (1 + spread)
    reach = Z * math.sqrt(share * (1 - share) / total + spread / (4 * total)) / (1 + spread)
    return max(centre - reach, 0.0), min(centre + reach, 1.0)


def accuracy_intervals(measures: Mapping[str, float], samples: int) -> dict[str, tuple[float, float]]:
    """The intervals of those measures, over `samples`, that are proportions of independent samples."""
    return {name: wilson(round(measures[name] * samples), samples) for name in ACCURACIES if name in measures}
