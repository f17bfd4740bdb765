"""Weak scaling over hosts: a step as `minivit plan` forecasts it and as measured over links of a known speed.

Hosts are network namespaces of this machine, on one bridge; a token bucket limits what each sends. Every host trains
one rank on the same number of images, so without the network all steps would take equally long.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.bench.namespaces import Namespace, hosts_on_bridge
from pipeline.bench.plan import PlanCase, predict
from pipeline.bench.plan_process import MeasuredRank, measure_rank
from pipeline.errors import PipelineError
from pipeline.forecast.hardware import Hardware
from pipeline.forecast.this_cpu import this_cpu

NETWORK = "10.78.0"


def weak_case(hosts: int, images: int) -> PlanCase:
    """ViT-Ti/16 of 112 px on one rank per host: 5.6 M gradients for the network and little computation."""
    return PlanCase("tiny", 112, images * hosts, "fp32", ranks=hosts)


def measure(most_hosts: int, megabytes_per_s: float, images: int, rounds: int, steps: int) -> dict[str, Any]:
    """Predicted and measured seconds of a step on 1 to `most_hosts` hosts; a ratio is predicted divided by measured.

    The prediction adds the forecast communication to the step measured on one host, times the hosts that share a core.
    Times are medians over the rounds of the slowest rank's fastest step. Raises PipelineError unless run by root.
    """
    if os.geteuid() != 0:
        raise PipelineError(
            "bench weak-scaling: run it as root: hosts are network namespaces, which nobody else can make"
        )
    numbers = range(1, most_hosts + 1)
    taken: dict[int, list[float]] = {number: [] for number in numbers}
    with hosts_on_bridge(most_hosts, NETWORK, megabytes_per_s) as hosts:
        for _ in range(rounds):
            for number in numbers:
                ranks = train_on(hosts[:number], images, steps)
                taken[number].append(max(rank.wall_s for rank in ranks))
    measured = {number: statistics.median(each) for number, each in taken.items()}
    core = this_cpu()
    network = core.joined(1).model_copy(update={"gpus_per_node": 1, "network_gb_per_s": megabytes_per_s / 1e3})
    return {
        "settings": {"megabytes_per_s": megabytes_per_s, "images": images, "rounds": rounds, "steps": steps},
        "hosts": [
            compare(number, images, measured, network, sharing=max(number / core.gpus_per_node, 1.0))
            for number in numbers
        ],
    }


def compare(
    hosts: int, images: int, measured: dict[int, float], hardware: Hardware, *, sharing: float
) -> dict[str, Any]:
    """The figures of a number of hosts, of which `sharing` share a core."""
    exposed_s = predict(weak_case(hosts, images), hardware).step.exposed_s
    predicted_s = measured[1] * sharing + exposed_s
    return {
        "hosts": hosts,
        "predicted_s": predicted_s,
        "communication_s": exposed_s,
        "measured_s": measured[hosts],
        "ratio": predicted_s / measured[hosts],
        "efficiency": measured[1] / measured[hosts],
        "predicted_efficiency": measured[1] / predicted_s,
    }


def train_on(hosts: list[Namespace], images: int, steps: int) -> list[MeasuredRank]:
    """Train one rank on each host, in processes that reach each other only over its link."""
    with tempfile.TemporaryDirectory() as scratch:
        job = {"hosts": len(hosts), "images": images, "steps": steps, "store": str(Path(scratch) / "store")}
        command = [sys.executable, "-m", __name__]
        ranks = [
            subprocess.Popen(
                ["ip", "netns", "exec", host.name, *command, json.dumps(job | {"rank": rank})],
                env=os.environ | {"GLOO_SOCKET_IFNAME": "eth0", "OMP_NUM_THREADS": "1"},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank, host in enumerate(hosts)
        ]
        answers = [rank.communicate() for rank in ranks]
    for rank, (_, errors) in zip(ranks, answers, strict=True):
        if rank.returncode:
            raise PipelineError(f"bench weak-scaling: a rank ended with status {rank.returncode}:\n{errors}")
    return [MeasuredRank(**json.loads(text.splitlines()[-1])) for text, _ in answers]


def _train(job: dict[str, Any]) -> MeasuredRank:
    case = weak_case(job["hosts"], job["images"])
    return measure_rank(case.stage, case.spec, job["rank"], job["hosts"], job["store"], job["steps"])


if __name__ == "__main__":
    print(json.dumps(asdict(_train(json.loads(sys.argv[1])))))
