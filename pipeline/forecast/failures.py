"""How often to save, and what failures cost: Young 1974 and Daly 2006."""

from __future__ import annotations

import math

MOST_EXPONENT = 700.0  # e^x overflows a float just above


def young_s(save_s: float, mtbf_s: float) -> float:
    """First-order optimal training time between two saves: sqrt(2 d M) (Young 1974)."""
    return math.sqrt(2 * save_s * mtbf_s)


def daly_s(save_s: float, mtbf_s: float) -> float:
    """Higher-order optimal training time between two saves (Daly 2006, equation 37)."""
    if save_s >= 2 * mtbf_s:
        return mtbf_s
    ratio = save_s / (2 * mtbf_s)
    return young_s(save_s, mtbf_s) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - save_s


def goodput(interval_s: float, save_s: float, recovery_s: float, mtbf_s: float) -> float:
    """Share of wall time spent on training (Daly 2006, equation 20), with Poisson failures, also during recovery.

    `interval_s` is the training time between saves, `save_s` how long training waits for a save, `recovery_s` the time
    from a failure to the first new step, including the steps trained while the last save was not yet durable.
    """
    if max(recovery_s, interval_s + save_s) / mtbf_s > MOST_EXPONENT:
        return 0.0
    wall_s = mtbf_s * math.exp(recovery_s / mtbf_s) * math.expm1((interval_s + save_s) / mtbf_s)
    return interval_s / wall_s
