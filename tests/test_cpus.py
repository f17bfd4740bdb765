from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline import cpus
from pipeline.cpus import usable_cpus


@pytest.mark.parametrize(
    ("slurm", "files", "usable"),
    [
        (None, {}, 8),
        ("3", {}, 3),
        ("64", {}, 8),  # the affinity is narrower
        ("3", {"cpu.max": "250000 100000"}, 2),
        (None, {"cpu.max": "50000 100000"}, 1),
        (None, {"cpu.max": "max 100000"}, 8),
        (None, {"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"}, 4),
        (None, {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
    ],
)
def test_cpus_that_belong_to_others_are_not_used(
    slurm: str | None, files: dict[str, str], usable: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    monkeypatch.setattr(cpus, "CGROUP", tmp_path)
    monkeypatch.delenv("SLURM_CPUS_ON_NODE", raising=False)
    if slurm:
        monkeypatch.setenv("SLURM_CPUS_ON_NODE", slurm)
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content + "\n")
    assert usable_cpus() == usable
