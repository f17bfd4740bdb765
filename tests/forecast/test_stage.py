from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.forecast.compute import Work
from pipeline.forecast.hardware import Hardware
from pipeline.forecast.known_hardware import KNOWN
from pipeline.forecast.loading import SampleCost
from pipeline.forecast.stage import Forecast, Job, expected_failures, forecast

# A TFLOP/s, nothing but products; nodes of four; a step of a second on one rank.
PLAIN = KNOWN["h100"].model_copy(
    update={
        "bf16_tflops": 1.0,
        "achieved_flops": 1.0,
        "memory_gb_per_s": 1e6,
        "layer_us": 0.0,
        "gpus_per_node": 4,
        "cores_per_gpu": 9,
        "storage_gb_per_s": 1.0,
    }
)
JOB = Job(
    ranks=1,
    global_batch_size=1000,
    zero_stage=1,
    trained=1000,
    parameters=1000,
    bucket=1 << 24,
    loader_workers=8,
    sample=SampleCost(10_000, 0),
    checkpoint_bytes=4_000_000_000,
    steps=86_400,
    save_every_s=600.0,
    save_every_steps=1000,
)
WORK = Work(1000, 1, 12, 0.25e12, 0.75e12, 0, 0, 0, 2)


def found(hardware: Hardware = PLAIN, work: Work = WORK, mtbf_h: float | None = None, **changed: Any) -> Forecast:
    job = replace(JOB, **changed)
    return forecast(job, [(work, 1.0)], hardware, memory_bytes=0, remedies=[], mtbf_h=mtbf_h)


def test_a_stage_by_hand() -> None:
    result = found()
    assert (result.step_s, result.images_per_s, result.days) == pytest.approx((1, 1000, 1))
    assert (result.nodes, result.limited_by, result.fits) == (1, "compute", True)
    assert result.loader_cores_per_node == pytest.approx(1000 * (1e-4 + 12.8e-9 * 10_000))
    assert result.storage_bytes_per_s_per_node == pytest.approx(1e7)
    assert (result.save_s, result.save_wait_s) == pytest.approx((8, 0.2))  # 0.5 and 20 GB/s
    assert (result.failures, result.days_with_failures) == (None, None)


def test_a_slow_loader_limits() -> None:
    """A thousand images of 0.228 ms on one worker; on two it keeps up with half a second of training."""
    half = replace(WORK, forward_flops=0.0, backward_flops=0.1e12)
    slow = found(work=half, loader_workers=1)
    assert slow.limited_by == "loader"
    assert slow.step_s == pytest.approx(0.228)
    assert slow.step.data_wait_s == pytest.approx(0.128)
    assert found(work=half, loader_workers=8).limited_by == "compute"


def test_slow_storage_limits() -> None:
    slow = found(PLAIN.model_copy(update={"storage_gb_per_s": 0.0025}))
    assert (slow.limited_by, slow.step_s) == ("storage", pytest.approx(4))  # 10 MB


def test_a_slow_network_limits() -> None:
    slow = found(PLAIN.model_copy(update={"network_gb_per_s": 0.01}), ranks=8, trained=50_000_000, bucket=1 << 30)
    assert slow.limited_by == "network"
    assert slow.step_s == pytest.approx(slow.step.compute_s + slow.step.exposed_s)


def test_what_does_not_fit_is_limited_by_memory() -> None:
    result = forecast(JOB, [(WORK, 1.0)], PLAIN, memory_bytes=81 * 2**30, remedies=["x"], mtbf_h=None)
    assert (result.fits, result.limited_by, result.remedies) == (False, "memory", ["x"])


def test_steps_of_several_sizes_are_averaged() -> None:
    large = replace(WORK, forward_flops=2.25e12)
    result = forecast(JOB, [(WORK, 0.75), (large, 0.25)], PLAIN, memory_bytes=0, remedies=[], mtbf_h=None)
    assert result.step_s == pytest.approx(0.75 * 1 + 0.25 * 3)


def test_failures_by_hand() -> None:
    """One node that fails every ten hours; reading takes 4 s, the last save is 8 s old at best."""
    failures = found(mtbf_h=10).failures
    assert failures is not None
    assert (failures.mtbf_s, failures.recovery_s, failures.interval_s) == (36_000, 21 + 4 + 8, 600)
    assert failures.young_s == pytest.approx((2 * 0.2 * 36_000) ** 0.5)
    assert failures.best_interval_s == pytest.approx(failures.daly_s)
    assert failures.goodput < failures.best_goodput < 1
    assert found(mtbf_h=10).days_with_failures == pytest.approx(1 / failures.goodput)


def test_more_nodes_fail_more_often() -> None:
    one, two = (found(ranks=ranks, mtbf_h=10).failures for ranks in (4, 8))
    assert one is not None
    assert two is not None
    assert two.mtbf_s == one.mtbf_s / 2


def test_saves_are_no_closer_than_a_step_and_the_last_save() -> None:
    settings = {"save_wait_s": 1e-6, "recovery_s": 30.0, "mtbf_s": 1e4}
    assert expected_failures(save_s=8, step_s=1, interval_s=100, **settings).best_interval_s == 8
    assert expected_failures(save_s=0.1, step_s=1, interval_s=0.5, **settings).interval_s == 1


def test_without_an_interval_there_are_no_failures_to_tell_of() -> None:
    assert found(mtbf_h=10, save_every_s=None, save_every_steps=None).failures is None


@given(st.integers(1, 512), st.integers(1, 512), st.integers(0, 3))
def test_more_ranks_never_compute_longer(ranks: int, more: int, zero: int) -> None:
    """Each step has the same number of samples; the fullest rank has its share, rounded up."""

    def compute_s(count: int) -> float:
        share = -(-1000 // count) / 1000
        work = replace(WORK, forward_flops=share * 0.25e12, backward_flops=share * 0.75e12)
        return found(work=work, ranks=count, zero_stage=zero).step.compute_s

    assert compute_s(min(ranks + more, 1000)) <= compute_s(ranks)
