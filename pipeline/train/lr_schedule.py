"""The learning-rate schedule, as a pure function of the step, so that all ranks and restarts agree."""

from __future__ import annotations

import math


def lr_ratio(
    step: int, total_steps: int, warmup_steps: int, schedule: str, final_ratio: float, decay_steps: int = 0
) -> float:
    """Learning rate of a step relative to the peak: linear warm-up from 0, then the schedule down to `final_ratio`.

    The cosine follows Loshchilov & Hutter 2017 (SGDR) without restarts. `wsd` (warm-up, stable, decay) stays at the
    peak until the last `decay_steps` steps, then decays linearly (Zhai et al. 2022, who call this cooldown; Hu et al.
    2024). The rate of the first step is above 0.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if schedule == "constant":
        return 1.0
    start = max(total_steps - decay_steps, warmup_steps) if schedule == "wsd" else warmup_steps
    progress = max(step - start, 0) / max(total_steps - start, 1)
    shape = 0.5 * (1 + math.cos(math.pi * progress)) if schedule == "cosine" else 1 - progress
    return final_ratio + (1 - final_ratio) * shape
