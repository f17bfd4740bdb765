"""Time of a step's collectives under ZeRO, and how much of it the backward pass hides.

Volumes: Rajbhandari et al. 2020, section 7. A ring of p ranks sends (p - 1) / p of the bytes in a reduce-scatter or
all-gather, and twice that in an all-reduce. Across nodes, each GPU exchanges its share of the node's result with its
peers on the other nodes, so all network cards of a node work in parallel. Hops: a ring within a node, a tree between
nodes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipeline.forecast.hardware import FP32, Hardware


@dataclass(frozen=True)
class Ring:
    """The ranks of a collective: `per_node` on each of `nodes`."""

    nodes: int
    per_node: int

    @classmethod
    def of(cls, ranks: int, hardware: Hardware) -> Ring:
        """Fill one node after another; the fullest determines the time."""
        return cls(-(-ranks // hardware.gpus_per_node), min(ranks, hardware.gpus_per_node))

    def gather_s(self, amount: float, hardware: Hardware, calls: int = 1) -> float:
        """Seconds of all-gathers or reduce-scatters of `amount` bytes in total, the size of the full tensors."""
        link, network = (
            1e9 * hardware.achieved_bandwidth * peak for peak in (hardware.link_gb_per_s, hardware.network_gb_per_s)
        )
        within = (self.per_node - 1) / self.per_node * amount / link
        between = (self.nodes - 1) / self.nodes * amount / self.per_node / network
        hops = self.per_node - 1 + math.ceil(math.log2(self.nodes))
        return within + between + calls * hops * hardware.latency_us * 1e-6

    def all_reduce_s(self, amount: float, hardware: Hardware, calls: int = 1) -> float:
        return 2 * self.gather_s(amount, hardware, calls)


@dataclass(frozen=True)
class Communication:
    total_s: float
    exposed_s: float  # not hidden by computation


def communication(
    *,
    ranks: int,
    zero_stage: int,
    trained: int,
    parameters: int,
    width: int,
    bucket: int,
    micro_batches: int,
    forward_s: float,
    backward_s: float,
    hardware: Hardware,
) -> Communication:
    """Seconds of a step's collectives, with ZeRO as the engine configures it.

    Gradients are reduced in fp32, in buckets of `bucket` elements. Stages 0 and 1 all-reduce them once, after the
    backward pass. Stage 2 all-reduces those of each micro-batch (DeepSpeed merges the ranks' buckets), and stage 3
    reduce-scatters them, both during the backward pass if the hardware overlaps; the last bucket is always exposed.
    Without overlap, stage 2 reduces the gradients of a model that fits in one bucket once per step. Stages 1 and 2
    gather the new weights after the update; stage 3 gathers them in each forward and backward pass, overlapped as well.
    `forward_s` and `backward_s` cover all micro-batches.
    """
    if ranks == 1:
        return Communication(0.0, 0.0)
    ring, buckets = Ring.of(ranks, hardware), max(math.ceil(trained / bucket), 1)
    once = zero_stage < 2 or (zero_stage == 2 and not hardware.overlaps and trained <= bucket)
    rounds = 1 if once else micro_batches
    reduce = ring.gather_s if zero_stage == 3 else ring.all_reduce_s
    gradients_s = rounds * reduce(trained * FP32, hardware, buckets)
    gathers = {0: 0, 1: 1, 2: 1, 3: 2 * micro_batches}[zero_stage]
    weights_s = gathers * ring.gather_s(parameters * width, hardware, buckets)
    total_s = gradients_s + weights_s
    if zero_stage < 2 or not hardware.overlaps:
        return Communication(total_s, total_s)
    last_s = rounds * reduce(min(trained, bucket) * FP32, hardware)
    if zero_stage == 2:
        return Communication(total_s, max(last_s, gradients_s - backward_s) + weights_s)
    behind_forward = max(weights_s / 2 - forward_s, 0.0)
    return Communication(total_s, behind_forward + max(last_s, gradients_s + weights_s / 2 - backward_s))
