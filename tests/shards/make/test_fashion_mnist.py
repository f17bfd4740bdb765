from __future__ import annotations

import gzip
import itertools
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.errors import DataError
from pipeline.shards.index import load_offsets
from pipeline.shards.index_file import load_index
from pipeline.shards.make import ensure_made, fashion_mnist, make
from pipeline.shards.make._fashion_mnist_files import DEBIAN_FOLDER, read_split
from pipeline.shards.store import read_range
from pipeline.shards.tar import read_sample
from pipeline.shards.verify import verify_shards

WriteIdx = Callable[[Path, np.ndarray], None]


@pytest.fixture
def src(tmp_path: Path, write_idx: WriteIdx, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Random images in the data set's own files: 25 to train on, 10 to test on, 10 to a shard."""
    monkeypatch.setattr(fashion_mnist, "SAMPLES_PER_SHARD", 10)
    rng = np.random.default_rng(0)
    folder = tmp_path / "src"
    folder.mkdir()
    for prefix, count in (("train", 25), ("t10k", 10)):
        write_idx(folder / f"{prefix}-images-idx3-ubyte.gz", rng.integers(0, 256, (count, 28, 28), np.uint8))
        write_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", rng.integers(0, 10, count, np.uint8))
    return folder


def read_all(pattern: str) -> tuple[list[np.ndarray], list[int], list[str]]:
    images, labels, keys = [], [], []
    for shard in load_index(pattern).shards:
        offsets = load_offsets(shard).tolist()
        for start, stop in itertools.pairwise(offsets):
            key, members = read_sample(read_range(shard.url, start, stop))
            images.append(cv2.imdecode(np.frombuffer(members["png"], np.uint8), cv2.IMREAD_UNCHANGED))
            labels.append(int(members["cls"]))
            keys.append(key)
    return images, labels, keys


def test_every_image_and_label_without_loss(src: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    index = make("fashion-mnist", out, src=src)
    assert index.counts.tolist() == [10, 10, 10, 5]
    assert index.classes == {"class_id": fashion_mnist.CLASSES}
    for split in ("train", "test"):
        images, labels, keys = read_all(f"{out}/{split}-*.tar")
        data = read_split(src, split)
        np.testing.assert_array_equal(images, data.images)
        np.testing.assert_array_equal(labels, data.labels)
        assert len(set(keys)) == len(keys)
    assert list(verify_shards(str(out), workers=1)) == []


def test_a_second_run_touches_nothing_and_needs_no_source(src: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    digest = make("fashion-mnist", out, src=src).digest
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    for path in src.iterdir():
        path.unlink()
    assert make("fashion-mnist", out, src=src).digest == digest
    assert before == {path.name: path.stat().st_mtime_ns for path in out.iterdir()}


@pytest.mark.parametrize("name", ["train-000001.tar", "train-000001.tar.idx", "index.json"])
@pytest.mark.parametrize(
    "damage", [lambda data: None, lambda data: data[:-600], lambda data: data[:99] + b"!" + data[100:]]
)
def test_repairs_what_is_damaged_and_keeps_the_rest(src: Path, tmp_path: Path, name: str, damage) -> None:
    out = tmp_path / "out"
    digest = make("fashion-mnist", out, src=src).digest
    path, kept = out / name, out / "test-000000.tar"
    before, data = kept.stat().st_mtime_ns, damage(path.read_bytes())
    path.unlink() if data is None else path.write_bytes(data)
    assert make("fashion-mnist", out, src=src).digest == digest
    assert list(verify_shards(str(out), workers=1)) == []
    assert name == "index.json" or kept.stat().st_mtime_ns == before


def test_killed_before_the_index_the_next_run_completes_it(src: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code = f"""
import os, pathlib
from pipeline.shards.make import fashion_mnist, make
fashion_mnist.SAMPLES_PER_SHARD = 10
fashion_mnist.write_index = lambda index: os._exit(9)
make("fashion-mnist", {str(out)!r}, src=pathlib.Path({str(src)!r}))
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 9
    assert len(list(out.glob("*.tar"))) == 4
    with pytest.raises(DataError, match="has shards but no index"):
        load_index(str(out))
    assert make("fashion-mnist", out, src=src).num_samples == 35


def test_two_at_once_end_in_one_data_set(src: Path, tmp_path: Path) -> None:
    digests: list[str] = []
    makers = [
        threading.Thread(target=lambda: digests.append(make("fashion-mnist", tmp_path / "out", src=src).digest))
        for _ in range(3)
    ]
    for thread in makers:
        thread.start()
    for thread in makers:
        thread.join()
    assert len(digests) == 3
    assert len(set(digests)) == 1
    assert list(verify_shards(str(tmp_path / "out"), workers=1)) == []


def test_files_that_are_something_else(src: Path, write_idx: WriteIdx, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found no Fashion-MNIST files"):
        make("fashion-mnist", tmp_path / "out", src=tmp_path)
    labels = src / "train-labels-idx1-ubyte.gz"
    write_idx(labels, np.full(25, 10, np.uint8))
    with pytest.raises(DataError, match="are not Fashion-MNIST"):
        make("fashion-mnist", tmp_path / "out", src=src)
    for content in (
        b"",
        b"\x1f\x8b broken",
        gzip.compress(b"\0\0\x08\x01\xff\xff\xff\xff"),
        gzip.compress(b"\0\0\x0d\x01"),
    ):
        labels.write_bytes(content)
        with pytest.raises(DataError, match=r"train-labels-idx1-ubyte.gz: cannot be read as an idx file"):
            make("fashion-mnist", tmp_path / "out", src=src)


@pytest.mark.skipif(not DEBIAN_FOLDER.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed")
def test_the_real_one(tmp_path: Path) -> None:
    assert ensure_made("fashion-mnist", f"{tmp_path}/train-{{000000..000011}}.tar").num_samples == 60_000
    test = ensure_made("fashion_mnist", f"{tmp_path}/test-*.tar")
    assert (test.num_samples, test.totals["class_id"]["high"]) == (10_000, 9)
    images, labels, _ = read_all(f"{tmp_path}/test-000001.tar")
    data = read_split(DEBIAN_FOLDER, "test")
    np.testing.assert_array_equal(images, data.images[5000:])
    np.testing.assert_array_equal(labels, data.labels[5000:])
