from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.forecast.hardware import Hardware
from pipeline.forecast.known_hardware import KNOWN
from pipeline.forecast.network import Communication, Ring, communication

# 1 GB/s within a node of four, 0.1 GB/s per rank between nodes, hardly any latency.
PLAIN = KNOWN["h100"].model_copy(
    update={
        "link_gb_per_s": 1.0,
        "network_gb_per_s": 0.1,
        "gpus_per_node": 4,
        "achieved_bandwidth": 1.0,
        "latency_us": 1e-9,
    }
)
SLOW = PLAIN.model_copy(update={"latency_us": 1000.0})


def collectives(hardware: Hardware = PLAIN, **changed: Any) -> Communication:
    """A model of 100 M parameters in bf16 on four ranks, whose gradients are one bucket."""
    settings: dict[str, Any] = {
        "ranks": 4,
        "zero_stage": 2,
        "trained": 100_000_000,
        "parameters": 100_000_000,
        "width": 2,
        "bucket": 100_000_000,
        "micro_batches": 1,
        "forward_s": 0.0,
        "backward_s": 0.0,
    }
    return communication(**settings | changed, hardware=hardware)


def test_a_ring_within_a_node_by_hand() -> None:
    """Four ranks and 400 MB: three quarters of it out of each rank, twice in an all-reduce."""
    ring = Ring.of(4, PLAIN)
    assert ring == Ring(1, 4)
    assert ring.gather_s(4e8, PLAIN) == pytest.approx(0.3)
    assert ring.all_reduce_s(4e8, PLAIN) == pytest.approx(0.6)


def test_two_nodes_by_hand() -> None:
    """Within a node as before; between nodes, half of a rank's quarter of 400 MB, at 0.1 GB/s."""
    assert Ring.of(8, PLAIN) == Ring(2, 4)
    assert Ring.of(8, PLAIN).gather_s(4e8, PLAIN) == pytest.approx(0.3 + 0.5)


def test_hops_by_hand() -> None:
    """Three in the ring of four, two in a tree of four nodes; 1 ms each, in each of five calls."""
    assert Ring.of(16, SLOW).gather_s(0, SLOW, 5) == pytest.approx(5 * 5e-3)
    assert Ring.of(16, SLOW).all_reduce_s(0, SLOW, 5) == pytest.approx(2 * 5 * 5e-3)


@pytest.mark.parametrize(
    ("zero", "gradients_s", "weights_s"),
    [(0, 0.6, 0.0), (1, 0.6, 0.15), (2, 0.6, 0.15), (3, 0.3, 0.3)],
)
def test_zero_stages_by_hand(zero: int, gradients_s: float, weights_s: float) -> None:
    """400 MB of fp32 gradients, 200 MB of bf16 weights; nothing to hide behind."""
    found = collectives(zero_stage=zero)
    assert found.total_s == pytest.approx(gradients_s + weights_s)
    assert found.exposed_s == pytest.approx(found.total_s)


def test_gradients_hide_behind_the_backward_pass_but_for_the_last_bucket() -> None:
    buckets = collectives(bucket=10_000_000, backward_s=10.0)
    assert buckets.exposed_s == pytest.approx(0.06 + 0.15)
    partly = collectives(bucket=10_000_000, backward_s=0.4)
    assert partly.exposed_s == pytest.approx(0.6 - 0.4 + 0.15)
    after = collectives(zero_stage=1, bucket=10_000_000, backward_s=10.0)
    assert after.exposed_s == after.total_s
    cpu = collectives(PLAIN.model_copy(update={"overlaps": False}), bucket=10_000_000, backward_s=10.0)
    assert cpu.exposed_s == cpu.total_s


def test_zero_3_gathers_weights_behind_both_passes() -> None:
    found = collectives(zero_stage=3, bucket=10_000_000, forward_s=0.1, backward_s=10.0)
    assert found.exposed_s == pytest.approx((0.15 - 0.1) + 0.03)


def test_stages_2_and_3_reduce_every_micro_batch() -> None:
    once, thrice = collectives(), collectives(micro_batches=3)
    assert thrice.total_s - once.total_s == pytest.approx(2 * 0.6)
    assert collectives(zero_stage=1, micro_batches=3) == collectives(zero_stage=1)


def test_stage_2_reduces_a_model_of_one_bucket_once_where_nothing_hides_it() -> None:
    alone = PLAIN.model_copy(update={"overlaps": False})
    assert collectives(alone, micro_batches=3) == collectives(alone)
    assert (
        collectives(alone, micro_batches=3, bucket=50_000_000).total_s > collectives(alone, bucket=50_000_000).total_s
    )


@given(st.sampled_from(sorted(KNOWN)), st.integers(1, 4096), st.integers(0, 3), st.integers(1, 10**10))
def test_no_communication_is_exposed_twice(name: str, ranks: int, zero: int, parameters: int) -> None:
    found = collectives(
        KNOWN[name], ranks=ranks, zero_stage=zero, trained=parameters, parameters=parameters, bucket=1 << 24
    )
    assert 0 <= found.exposed_s <= found.total_s * (1 + 1e-9)
    assert (found.total_s == 0) == (ranks == 1)


@given(st.integers(0, 3), st.floats(0, 10), st.floats(0, 10))
def test_more_to_hide_behind_never_exposes_more(zero: int, backward_s: float, more_s: float) -> None:
    less, more = (
        collectives(zero_stage=zero, bucket=1 << 24, backward_s=each) for each in (backward_s, backward_s + more_s)
    )
    assert more.exposed_s <= less.exposed_s
