from __future__ import annotations

import os

import pytest

from pipeline.bench import counts, memory, resume, scale
from pipeline.bench.processes import cpu_seconds, peak_bytes, tree


def test_a_rank_of_a_huge_job_finds_its_first_sample() -> None:
    result = scale.measure(rounds=1)
    assert result["peak_megabytes"] <= 150
    assert 0 < result["seconds"] < 10  # the real figure needs an idle machine
    assert result["rounds"][0]["first"][0].startswith("train-")


def test_shards_are_indexed_by_counts_and_read() -> None:
    result = counts.measure(40, None, rounds=1)
    assert (result["shards"], result["samples"]) == (40, 40 * counts.SAMPLES_PER_SHARD)
    assert result["first_batch_seconds"] > 0


@pytest.fixture
def index(tmp_path):
    pytest.importorskip("skimage")
    from pipeline.bench import photos

    photos.SETS["tiny"] = (60, 80, 64)
    yield photos.ensure_photos(tmp_path, "tiny", workers=1)
    del photos.SETS["tiny"]


def test_memory_is_compared_with_ten_times_the_shards(index) -> None:
    result = memory.measure(index, 16, batches=2)
    assert result["shards"] == [8, 80]
    assert 0.5 < result["ratio"] < 1.1


def test_resume_is_timed_at_both_ends(index) -> None:
    result = resume.measure(index, 16, rounds=1)
    assert result["ratio"] == pytest.approx(result["seconds_at_99_percent"] / result["seconds_at_1_percent"])


def test_the_process_tree_holds_this_process_and_its_use() -> None:
    assert next(iter(tree())) == os.getpid()
    assert cpu_seconds() > 0
    assert peak_bytes() > 10_000_000
