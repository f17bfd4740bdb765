"""Samples a node's utilisation while its ranks work, under the names of MLflow's system metrics.

One rank per node writes the rows, without MLflow; the driver sends them.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from pipeline.periodic import Periodic

if TYPE_CHECKING:
    import torch

FOLDER = "system"  # of a stage's folder: one file of rows per node
PREFIX = "system/"
THE_ONLY_NODE = "node"  # the name of its file
MEGABYTE = 1e6

Gauge = Callable[[], dict[str, float]]


class NodeUsage:
    """While entered, appends a row to `FOLDER/<node>.jsonl` every few seconds, and one at the end.

    A row has the step, which counts the file's rows, the time, and what `gauges` measure.

    Args:
        node: part of the metrics' names; None if the job runs on a single node.
    """

    def __init__(self, stage_folder: Path, node: str | None, every_s: float) -> None:
        self._path = stage_folder / FOLDER / f"{node or THE_ONLY_NODE}.jsonl"
        self._prefix = f"{PREFIX}{node}/" if node else PREFIX
        self._gauges: list[Gauge] = []
        self._next_step: int | None = None  # None: count the rows first, and remove one that is torn
        self._sampling = Periodic(self._sample, every_s, at_once=False)

    def __enter__(self) -> NodeUsage:
        self._gauges = gauges()
        self._sampling.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._sampling.__exit__(kind, error, at)

    def _sample(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        step = count_rows(self._path) if self._next_step is None else self._next_step
        self._next_step = None  # until this row is written: a full disk may tear it
        row = {"step": step, "time": time.time()}
        for gauge in self._gauges:
            row |= {self._prefix + name: round(value, 1) for name, value in gauge().items()}
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        self._next_step = step + 1


def count_rows(path: Path) -> int:
    """The number of complete rows from earlier attempts; removes a last one that a kill cut short."""
    if not path.is_file():
        return 0
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        os.truncate(path, len(whole))
    return whole.count(b"\n")


def gauges() -> list[Gauge]:
    """What this node can measure; each gauge returns values by MLflow's names."""
    import psutil

    psutil.cpu_percent()  # the first call only starts the measuring period
    start = psutil.net_io_counters()

    def processor_and_memory() -> dict[str, float]:
        memory = psutil.virtual_memory()
        return {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / MEGABYTE,
            "system_memory_usage_percentage": memory.used / memory.total * 100,
        }

    def disk() -> dict[str, float]:
        usage = psutil.disk_usage(os.sep)
        return {
            "disk_usage_percentage": usage.percent,
            "disk_usage_megabytes": usage.used / MEGABYTE,
            "disk_available_megabytes": usage.free / MEGABYTE,
        }

    def network() -> dict[str, float]:
        """Megabytes since this attempt of the stage began."""
        now = psutil.net_io_counters()
        return {
            "network_receive_megabytes": (now.bytes_recv - start.bytes_recv) / MEGABYTE,
            "network_transmit_megabytes": (now.bytes_sent - start.bytes_sent) / MEGABYTE,
        }

    return [processor_and_memory, disk, network, *gpus()]


def gpus() -> list[Gauge]:
    """A gauge for each GPU of the node; none without NVIDIA's driver or the package nvidia-ml-py."""
    try:
        import pynvml
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(number) for number in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        return []

    def gauge(number: int, handle: Any) -> Gauge:
        def read() -> dict[str, float]:
            found: dict[str, float] = {}
            try:
                memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
                found["memory_usage_megabytes"] = memory.used / MEGABYTE
                found["memory_usage_percentage"] = memory.used / memory.total * 100
                found["utilization_percentage"] = pynvml.nvmlDeviceGetUtilizationRates(handle).gpu
                watts = pynvml.nvmlDeviceGetPowerUsage(handle) / 1000
                found["power_usage_watts"] = watts
                limit = pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000
                found["power_usage_percentage"] = watts / limit * 100
            except pynvml.NVMLError:
                pass  # a virtual GPU may report its memory, but not its power
            return {f"gpu_{number}_{name}": value for name, value in found.items()}

        return read

    return [gauge(number, handle) for number, handle in enumerate(handles)]


def node_names(places: Sequence[tuple[str, str]]) -> list[str | None]:
    """A name for the node of each rank, from its (host name, address): None if all ranks share one node.

    The host's name, with the address where several nodes share it.
    """
    nodes = set(places)
    if len(nodes) == 1:
        return [None] * len(places)
    hosts = [host for host, _ in nodes]
    return [host if hosts.count(host) == 1 else f"{host}-{address}" for host, address in places]


def exchange_places(
    store: torch.distributed.Store, rank: int, world_size: int, place: tuple[str, str]
) -> list[tuple[str, str]]:
    """Every rank's (host name, address), in the order of ranks; every rank must call this."""
    store.set(f"place/{rank}", json.dumps(place))
    return [(host, address) for host, address in (json.loads(store.get(f"place/{r}")) for r in range(world_size))]
