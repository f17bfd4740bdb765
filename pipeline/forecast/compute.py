"""Compute time of a step on one rank."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.forecast.hardware import Hardware

PASSES = 6  # over memory per kept value on a GPU: norms, activations and sums read and write it, forward and backward
BACKWARD = 2  # FLOPs of the backward pass relative to the forward pass


@dataclass(frozen=True)
class Work:
    """A step of the rank with the most samples, all its micro-batches together."""

    samples: int
    micro_batches: int
    layers: int
    forward_flops: float  # of matrix products, including a teacher's and recomputation
    backward_flops: float
    kept_values: float  # kept for the backward pass
    scores: float  # of attention
    state_bytes: int  # weights, gradients and optimiser state, which the update reads and writes
    width: int  # bytes of an activation value


@dataclass(frozen=True)
class ComputeTime:
    forward_s: float
    backward_s: float
    update_s: float

    @property
    def total_s(self) -> float:
        return self.forward_s + self.backward_s + self.update_s


def compute_time(work: Work, hardware: Hardware) -> ComputeTime:
    """Matrix products at the achieved rate plus passes over kept values and states; at least all kernel launches."""
    rate = hardware.peak_flops(work.width)
    memory = 1e9 * hardware.memory_gb_per_s
    value_s = PASSES * work.width / memory if hardware.value_ns is None else hardware.value_ns * 1e-9
    passes_s = work.kept_values * value_s + work.scores * hardware.score_ns * 1e-9
    forward_s = work.forward_flops / rate + passes_s / (1 + BACKWARD)
    backward_s = work.backward_flops / rate + passes_s * BACKWARD / (1 + BACKWARD)
    launches_s = work.micro_batches * work.layers * hardware.layer_us * 1e-6
    slower = max(launches_s / (forward_s + backward_s), 1.0)
    return ComputeTime(forward_s * slower, backward_s * slower, 2 * work.state_bytes / memory)
