"""Ranks that are forked, on a cluster of the run's own."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


def forked_ranks(kit: Any, folder: Path, process: Any, other_than: list[psutil.Process]) -> list[psutil.Process]:
    """The two ranks that a fork server has started, once there are two that were not there before."""

    def found() -> list[psutil.Process]:
        ranks = [rank for rank in kit.rank_processes(folder) if rank not in other_than and is_forked(rank)]
        return ranks if len(ranks) == 2 else []

    ranks: list[psutil.Process] = kit.wait_until(found, process)
    return ranks


def is_forked(rank: psutil.Process) -> bool:
    try:
        return "pipeline.cluster.fork_server" in rank.parent().cmdline()
    except (psutil.Error, AttributeError):  # it has just ended
        return False


def test_killed_ranks_are_forked_again_and_nothing_is_left_of_a_killed_run(
    workplace: Any, kit: Any, shards: Path
) -> None:
    stage = kit.pretrain(duration="100000 steps")
    path = workplace.write(kit.config(shards, "forked", {"pretrain": stage}))
    process = workplace.start("run", path)
    try:
        folder = workplace.stage("forked", "pretrain")
        ranks = forked_ranks(kit, folder, process, [])
        server = ranks[0].parent()
        kit.wait_until(lambda: workplace.rows("forked", "pretrain"), process)
        os.kill(ranks[1].pid, signal.SIGKILL)
        forked_ranks(kit, folder, process, ranks)
        began = time.time()
        kit.wait_until(lambda: (rows := workplace.rows("forked", "pretrain")) and rows[-1]["time"] > began, process)
        started = [server, *server.children(recursive=True)]
    finally:
        process.kill()
        process.communicate()
    assert not psutil.wait_procs(started, timeout=60)[1]
