from __future__ import annotations

from pathlib import Path

from pipeline.bench.shuffle import measure


def test_class_sorted_shards_mix_nearly_as_a_uniform_shuffle_does(tmp_path: Path) -> None:
    result = measure(tmp_path / "shuffle.png")
    assert result["entropy_ratio"] >= 0.97
    assert result["ours"]["neighbours_in_one_batch"] < 0.02
    assert result["ours"]["median_neighbour_distance"] > 20 * 256
    assert (tmp_path / "shuffle.png").read_bytes().startswith(b"\x89PNG")
