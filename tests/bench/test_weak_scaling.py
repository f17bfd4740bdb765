from __future__ import annotations

import os

import pytest

from pipeline.bench import weak_scaling
from pipeline.bench.weak_scaling import compare, measure
from pipeline.errors import PipelineError
from pipeline.forecast.known_hardware import KNOWN

LINK = KNOWN["h100"].model_copy(
    update={"gpus_per_node": 1, "network_gb_per_s": 0.025, "overlaps": False, "latency_us": 100.0}
)


def test_hosts_that_share_a_core_compute_in_turn_and_their_gradients_cross_the_links() -> None:
    found = compare(3, 8, {1: 0.2, 3: 2.5}, LINK, sharing=1.5)
    assert found["predicted_s"] == pytest.approx(0.3 + found["communication_s"])
    assert found["communication_s"] == pytest.approx(2.3, rel=0.1)  # 4/3 of 22 MB of gradients and 2/3 of the weights
    assert found["efficiency"] == pytest.approx(0.08)


def test_others_than_root_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weak_scaling.os, "geteuid", lambda: 1000)
    with pytest.raises(PipelineError, match="run it as root: hosts are network namespaces"):
        measure(2, 25.0, 8, 1, 1)


@pytest.mark.integration
@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for network namespaces")
def test_a_step_over_slow_links_takes_what_is_forecast() -> None:
    """Loosely, because other tests run at the same time."""
    one, two = measure(2, 25.0, 2, rounds=1, steps=2)["hosts"]
    assert one["ratio"] == 1.0
    assert 0.4 < two["ratio"] < 1.5
    assert two["measured_s"] > 1.0  # 22 MB of gradients and 11 of weights at 25 MB/s
