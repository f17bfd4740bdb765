from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.forecast.compute import Work, compute_time
from pipeline.forecast.hardware import Hardware
from pipeline.forecast.known_hardware import KNOWN

# 1 TFLOP/s in bf16, half of it in fp32, 1 TB/s.
PLAIN = KNOWN["h100"].model_copy(
    update={"bf16_tflops": 2.0, "fp32_tflops": 1.0, "achieved_flops": 0.5, "memory_gb_per_s": 1000.0, "layer_us": 0.0}
)
WORK = Work(
    samples=8,
    micro_batches=2,
    layers=10,
    forward_flops=1e12,
    backward_flops=2e12,
    kept_values=1e11,
    scores=1e9,
    state_bytes=10**11,
    width=2,
)


def seconds(work: Work = WORK, hardware: Hardware = PLAIN) -> tuple[float, float, float]:
    found = compute_time(work, hardware)
    assert found.total_s == found.forward_s + found.backward_s + found.update_s
    return found.forward_s, found.backward_s, found.update_s


def test_products_passes_and_update_by_hand() -> None:
    """Products take 1 and 2 s; six passes over 200 GB 1.2 s, a third of them forward; states are read and written."""
    assert seconds() == pytest.approx((1.4, 2.8, 0.2))


def test_fp32_has_its_own_rate_and_twice_the_bytes() -> None:
    assert seconds(replace(WORK, width=4)) == pytest.approx((2.8, 5.6, 0.2))


def test_values_may_have_their_own_cost() -> None:
    """On a CPU, the time per value does not depend on its width: 30 s for 1e11 values at 0.3 ns."""
    assert seconds(hardware=PLAIN.model_copy(update={"value_ns": 0.3})) == pytest.approx((11, 22, 0.2))


def test_scores_may_have_a_cost() -> None:
    """3 s for 1e9 scores at 3 ns, in addition to the passes."""
    assert seconds(hardware=PLAIN.model_copy(update={"score_ns": 3.0})) == pytest.approx((2.4, 4.8, 0.2))


def test_a_step_takes_at_least_the_launch_of_its_kernels() -> None:
    """Ten layers, two micro-batches, 1 s each."""
    launched = seconds(hardware=PLAIN.model_copy(update={"layer_us": 1e6}))
    assert launched == pytest.approx((20 / 3, 40 / 3, 0.2))
    assert seconds(hardware=PLAIN.model_copy(update={"layer_us": 1e3})) == seconds()
