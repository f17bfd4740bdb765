"""The CPUs that this process may use."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def usable_cpus() -> int:
    """CPUs that this process may use: by its affinity, its container's quota and its SLURM job, whichever is least.

    SLURM need not set the affinity (`TaskPlugin=task/none`).
    """
    limits = [len(os.sched_getaffinity(0)), _quota()]
    with suppress(KeyError, ValueError):
        limits.append(int(os.environ["SLURM_CPUS_ON_NODE"]))
    return min(limit for limit in limits if limit)


def _quota() -> int | None:
    """Whole CPUs, at least one, that the quota of this container's cgroup (version 2 or 1) is worth; None without."""
    for names in ("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"):
        with suppress(OSError, ValueError):  # "max" is no number
            quota, period = (int(word) for name in names for word in (CGROUP / name).read_text().split())
            if quota > 0:
                return max(quota // period, 1)
    return None
