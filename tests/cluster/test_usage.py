from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline.cluster.usage import FOLDER, NodeUsage, count_rows, exchange_places, gpus, node_names

NAMES = {
    "cpu_utilization_percentage",
    "system_memory_usage_megabytes",
    "system_memory_usage_percentage",
    "disk_usage_percentage",
    "disk_usage_megabytes",
    "disk_available_megabytes",
    "network_receive_megabytes",
    "network_transmit_megabytes",
}


def rows(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_node_is_sampled_in_mlflows_names(tmp_path: Path) -> None:
    path = tmp_path / FOLDER / "node.jsonl"
    began = time.time()
    with NodeUsage(tmp_path, None, every_s=0.05):
        while not path.is_file() or len(rows(path)) < 3:
            time.sleep(0.01)
    found = rows(path)
    assert [row["step"] for row in found] == list(range(len(found)))
    assert began <= found[0]["time"] <= found[-1]["time"] <= time.time()
    names = {name.removeprefix("system/") for name in found[0] if "/" in name}
    assert {name for name in names if not name.startswith("gpu_")} == NAMES
    for row in found:
        assert all(0 <= value <= 100 for name, value in row.items() if name.endswith("percentage"))
        assert row["system/disk_available_megabytes"] > 0


def test_a_stage_shorter_than_the_interval_has_a_row_and_a_restart_goes_on(tmp_path: Path) -> None:
    path = tmp_path / FOLDER / "h1.jsonl"
    for _ in range(2):
        with NodeUsage(tmp_path, "h1", every_s=1e6):
            pass
        with path.open("a") as file:
            file.write('{"step": 9, "ti')  # cut off by a kill
    assert count_rows(path) == 2
    assert [row["step"] for row in rows(path)] == [0, 1]
    assert "system/h1/cpu_utilization_percentage" in rows(path)[0]


def test_what_a_node_is_called() -> None:
    assert node_names([("h", "10.0.0.1")] * 3) == [None] * 3
    assert node_names([("h1", "10.0.0.1"), ("h1", "10.0.0.1"), ("h2", "10.0.0.2")]) == ["h1", "h1", "h2"]
    assert node_names([("h", "10.0.0.1"), ("h", "10.0.0.2")]) == ["h-10.0.0.1", "h-10.0.0.2"]


def test_every_rank_learns_where_the_others_are() -> None:
    store, places = torch.distributed.HashStore(), [("h1", "10.0.0.1"), ("h2", "10.0.0.2")]
    found: dict[int, Any] = {}
    threads = [
        threading.Thread(target=lambda r=rank: found.update({r: exchange_places(store, r, 2, places[r])}))
        for rank in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {0: places, 1: places}


def test_gpus_are_read_as_far_as_they_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for NVIDIA's library with two GPUs; the second is virtual and does not report its power."""

    class NVMLError(Exception):
        pass

    def power(handle: int) -> int:
        if handle == 1:
            raise NVMLError
        return 300_000

    library = SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda number: number,
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(used=2e9, total=8e9),
        nvmlDeviceGetUtilizationRates=lambda handle: SimpleNamespace(gpu=90),
        nvmlDeviceGetPowerUsage=power,
        nvmlDeviceGetEnforcedPowerLimit=lambda handle: 600_000,
    )
    monkeypatch.setitem(__import__("sys").modules, "pynvml", library)
    first, second = (gauge() for gauge in gpus())
    assert first == {
        "gpu_0_memory_usage_megabytes": 2000.0,
        "gpu_0_memory_usage_percentage": 25.0,
        "gpu_0_utilization_percentage": 90,
        "gpu_0_power_usage_watts": 300.0,
        "gpu_0_power_usage_percentage": 50.0,
    }
    assert set(second) == {
        "gpu_1_memory_usage_megabytes",
        "gpu_1_memory_usage_percentage",
        "gpu_1_utilization_percentage",
    }
