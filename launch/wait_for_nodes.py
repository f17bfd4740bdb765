"""Waits until the nodes of a job have joined its Ray cluster.

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
            sys.exit(
                f"pretrain.sh: only {joined} of {expected} nodes joined the Ray cluster in {TIMEOUT_S} s; see their "
                "output in slurm-*-ray.log"
            )
        time.sleep(POLL_S)
        joined = count_nodes()


def count_nodes() -> int:
    """Number of live nodes; 0 until the cluster answers."""
    try:
        ray.init(log_to_driver=False, logging_level="ERROR", ignore_reinit_error=True)
    except (ConnectionError, RuntimeError):
        return 0
    return sum(node["Alive"] for node in ray.nodes())


if __name__ == "__main__":
    main()
