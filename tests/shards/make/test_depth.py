from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from pipeline.errors import DataError
from pipeline.shards.index import DatasetIndex
from pipeline.shards.make import make
from pipeline.shards.samples import shard_samples


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Six photographs and their depth maps, millimetres in 16 bits."""
    rng = np.random.default_rng(0)
    for n in range(6):
        write(tmp_path / "images" / f"room{n}.jpg", rng.integers(256, size=(8, 12, 3)).astype(np.uint8))
        write(tmp_path / "depth" / f"room{n}_depth.png", rng.integers(500, 9000, size=(8, 12)).astype(np.uint16))
    return tmp_path


def write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), pixels)


def run(folder: Path, out: str = "out", **options: Any) -> DatasetIndex:
    paths = {"images": folder / "images", "depth": folder / "depth", "depth_suffix": "_depth.png"}
    return make("depth", folder / out, **{**paths, "workers": 1, **options})


def found(index: DatasetIndex) -> dict[str, dict[str, bytes]]:
    return {
        key.partition("-")[2]: {name: bytes(value) for name, value in (members or {}).items()}
        for shard in index.shards
        for _, key, members, _ in shard_samples(shard)
    }


def test_files_stay_as_they_are(pairs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(pairs / "images" / "alone.jpg", np.zeros((8, 12, 3), np.uint8))
    index = run(pairs, samples_per_shard=4)
    assert index.counts.tolist() == [4, 2]
    assert index.members == {"depth": ("depth.png",)}
    for name, members in found(index).items():
        assert members["jpg"] == (pairs / "images" / f"{name}.jpg").read_bytes()
        assert members["depth.png"] == (pairs / "depth" / f"{name}_depth.png").read_bytes()
    told = capsys.readouterr().err
    assert f"{pairs / 'images'}: 6 images with depth maps imported\n" in told
    assert "skipped: 1: images without a depth map: alone.jpg\n" in told
    before = {path.name: path.stat().st_mtime_ns for path in (pairs / "out").iterdir()}
    assert run(pairs, samples_per_shard=4).digest == index.digest
    assert before == {path.name: path.stat().st_mtime_ns for path in (pairs / "out").iterdir()}
    assert run(pairs, "split", val="0.5").names == ["train-000000.tar", "val-000000.tar"]


def test_what_cannot_be_used_is_left_out_and_named(pairs: Path) -> None:
    write(pairs / "depth" / "room0_depth.png", np.ones((8, 13), np.uint16))
    write(pairs / "depth" / "room1_depth.png", np.zeros((8, 12), np.uint16))
    (pairs / "depth" / "room2_depth.png").write_bytes((pairs / "depth" / "room2_depth.png").read_bytes()[:-40])
    assert run(pairs).num_samples == 3
    assert (pairs / "out" / "train-rejected.txt").read_text().splitlines() == [
        "room0_depth.png\tthe depth map has 13 x 8 pixels, but its image 12 x 8",
        "room1_depth.png\tthe depth map is 0 everywhere: nothing was measured",
        "room2_depth.png\tthe depth map is truncated or damaged",
    ]


def test_maps_of_8_bits_are_refused(pairs: Path) -> None:
    write(pairs / "depth" / "room3_depth.png", np.ones((8, 12), np.uint8))
    with pytest.raises(DataError, match=r"room3_depth.png: is a depth PNG with 8 bits, but depth maps must be"):
        run(pairs)


def test_names_that_do_not_fit_are_an_error(pairs: Path) -> None:
    with pytest.raises(DataError, match=r"no image has a depth map of the same name: .*--image-suffix .jpg --depth"):
        run(pairs, depth_suffix=".png")
