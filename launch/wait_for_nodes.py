"""Waits until a Ray cluster that is being started has as many nodes as the job.

Usage: wait_for_nodes.py NODES, with the address and the token in RAY_ADDRESS and RAY_AUTH_TOKEN.
"""

from __future__ import annotations

import sys
import time

import ray

TIMEOUT_S = 300
POLL_S = 2


def main() -> None:
    expected = int(sys.argv[1])
    deadline = time.monotonic() + TIMEOUT_S
    joined = 0
    while joined < expected:
        if time.monotonic() > deadline:
            sys.exit(f"{joined} of {expected} nodes joined the Ray cluster in {TIMEOUT_S} s; see their output above")
        time.sleep(POLL_S)
        joined = count_nodes()


def count_nodes() -> int:
    """Number of nodes alive; 0 while there is no cluster to ask."""
    try:
        ray.init(log_to_driver=False, logging_level="ERROR", ignore_reinit_error=True)
    except (ConnectionError, RuntimeError):
        return 0
    return sum(node["Alive"] for node in ray.nodes())


if __name__ == "__main__":
    main()
