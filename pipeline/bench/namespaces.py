"""Hosts on one machine: network namespaces on a bridge, which need root, `ip` and `tc`."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

from pipeline.errors import PipelineError

BURST, LATENCY = "64kb", "400ms"  # of the token bucket: much less than a step's bytes, and no packet dropped
OWN = 254  # this machine's number on the bridge


class Namespace(NamedTuple):
    """A host: the network namespace, its address on eth0, and this machine's end of the cable to it."""

    name: str
    address: str
    cable: str


@contextmanager
def hosts_on_bridge(count: int, network: str, megabytes_per_s: float | None = None) -> Iterator[list[Namespace]]:
    """`count` hosts with the addresses NETWORK.1, NETWORK.2 and so on; a network is like 10.78.0.

    This machine is NETWORK.254. Each host sends at most `megabytes_per_s`; None for no limit. Raises PipelineError if a
    command fails.
    """
    name = f"h{os.getpid() % 100_000}"
    bridge = f"{name}b"
    with ExitStack() as undo:
        _run("ip", "link", "add", bridge, "type", "bridge")
        undo.callback(_run, "ip", "link", "del", bridge)
        _run("ip", "addr", "add", f"{network}.{OWN}/24", "dev", bridge)
        _run("ip", "link", "set", bridge, "up")
        hosts = [Namespace(f"{name}n{i}", f"{network}.{i}", f"{name}v{i}") for i in range(1, count + 1)]
        for namespace, address, cable in hosts:
            _run("ip", "netns", "add", namespace)
            undo.callback(_run, "ip", "netns", "del", namespace)
            _run("ip", "link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", namespace)
            _run("ip", "link", "set", cable, "master", bridge, "up")
            _run("ip", "-n", namespace, "addr", "add", f"{address}/24", "dev", "eth0")
            for device in ("eth0", "lo"):
                _run("ip", "-n", namespace, "link", "set", device, "up")
            _run("ip", "-n", namespace, "route", "add", "default", "via", f"{network}.{OWN}")
            if megabytes_per_s is not None:
                limit = ("rate", f"{8 * megabytes_per_s}mbit", "burst", BURST, "latency", LATENCY)
                _run("tc", "-n", namespace, "qdisc", "add", "dev", "eth0", "root", "tbf", *limit)
        yield hosts


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PipelineError(f"`{' '.join(command)}` failed: {done.stderr.strip()}")
