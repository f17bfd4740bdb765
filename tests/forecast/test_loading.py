from __future__ import annotations

import pytest

from pipeline.forecast.known_hardware import KNOWN
from pipeline.forecast.loading import SampleCost, load_time

PLAIN = KNOWN["h100"].model_copy(update={"cores_per_gpu": 4, "storage_gb_per_s": 1.0})
CPU = PLAIN.model_copy(update={"shares_cores": True, "cores_per_gpu": 1})


@pytest.mark.parametrize(
    ("sample", "images_per_s"), [(SampleCost(48_000, 224 * 224), 727), (SampleCost(511_000, 96 * 96), 146.5)]
)
def test_decoding_is_that_of_the_measured_loader(sample: SampleCost, images_per_s: float) -> None:
    """Half of what two workers decode according to RESULTS.md: 1,454 and 293 images/s."""
    assert 1 / sample.decode_s == pytest.approx(images_per_s, rel=0.05)


def test_workers_share_the_samples_as_far_as_there_are_cores() -> None:
    sample = SampleCost(0, 900_000 / 13)  # 1 ms
    assert sample.decode_s == pytest.approx(1e-3)
    assert [load_time(600, sample, workers, 9, PLAIN, ranks=2).decode_s for workers in (1, 2, 3, 9)] == pytest.approx(
        [0.6, 0.3, 0.2, 0.2]
    )
    assert load_time(600, sample, 0, 9, PLAIN, ranks=2).decode_s == pytest.approx(9.6)


def test_a_cpu_that_trains_decodes_in_turn() -> None:
    sample = SampleCost(0, 900_000 / 13)
    assert load_time(600, sample, 1, 9, CPU, ranks=2).decode_s == pytest.approx(9.6)


def test_a_node_reads_for_all_its_ranks() -> None:
    found = load_time(600, SampleCost(1e6, 0), 3, 0, PLAIN, ranks=2)
    assert found.read_s == pytest.approx(1.2)
    assert (found.slowest, found.total_s) == ("loader", found.decode_s)
    slow = load_time(600, SampleCost(1e6, 0), 3, 0, PLAIN.model_copy(update={"storage_gb_per_s": 0.1}), ranks=2)
    assert (slow.slowest, slow.total_s) == ("storage", pytest.approx(12))
