from __future__ import annotations

import pytest

from pipeline.forecast.known_hardware import KNOWN


def test_cores_join_to_ranks() -> None:
    """Seven cores, three per rank: two ranks per node, each with three times the rates of a core."""
    core = KNOWN["h100"].model_copy(update={"gpus_per_node": 7, "cores_per_gpu": 1, "value_ns": 6.0})
    rank = core.joined(3)
    assert (rank.gpus_per_node, rank.cores_per_gpu, rank.value_ns) == (2, 3, 2.0)
    assert rank.peak_flops(4) == pytest.approx(3 * core.peak_flops(4))
    assert core.joined(9).gpus_per_node == 1
