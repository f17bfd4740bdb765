from __future__ import annotations

import os
import subprocess

import pytest

from pipeline.bench.namespaces import hosts_on_bridge


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for network namespaces")
def test_links_are_limited_and_nothing_is_left() -> None:
    with hosts_on_bridge(2, "10.80.0", 25.0) as (first, _):
        queue = subprocess.run(["tc", "-n", first.name, "qdisc", "show", "dev", "eth0"], capture_output=True, text=True)
        assert "tbf" in queue.stdout
        assert "rate 200Mbit" in queue.stdout
    left = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    assert first.name not in left
