from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import DataError
from pipeline.shards.index import load_offsets
from pipeline.shards.index_file import load_index
from pipeline.shards.make import ensure_made, fashion_mnist, fashion_mnist_few, make
from pipeline.shards.store import read_range
from pipeline.shards.tar import read_sample


def labels_by_key(pattern: str) -> dict[str, int]:
    (shard,) = load_index(pattern).shards
    offsets = load_offsets(shard).tolist()
    samples = [read_sample(read_range(shard.url, start, stop)) for start, stop in itertools.pairwise(offsets)]
    return {key: int(members["cls"]) for key, members in samples}


@pytest.fixture
def many(tmp_path: Path, write_idx: Callable[[Path, np.ndarray], None], monkeypatch: pytest.MonkeyPatch) -> Path:
    """300 training images, of which the last 10 are held out; 2 and 5 of each class are to be taken."""
    monkeypatch.setattr(fashion_mnist, "SAMPLES_PER_SHARD", 10)
    monkeypatch.setattr(fashion_mnist_few, "SAMPLES_PER_SHARD", 10)
    monkeypatch.setattr(fashion_mnist_few, "PER_CLASS", {"1pct": 2, "5pct": 5})
    rng = np.random.default_rng(0)
    src = tmp_path / "src"
    src.mkdir()
    for prefix, count in (("train", 300), ("t10k", 10)):
        write_idx(src / f"{prefix}-images-idx3-ubyte.gz", rng.integers(0, 256, (count, 28, 28), np.uint8))
        write_idx(src / f"{prefix}-labels-idx1-ubyte.gz", (rng.permutation(count) % 10).astype(np.uint8))
    return src


def test_equally_many_of_each_class_the_fewer_among_the_more(many: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    make("fashion-mnist-few", out, src=many)
    few, more = (labels_by_key(f"{out}/{name}-*.tar") for name in ("1pct", "5pct"))
    assert np.bincount(list(few.values())).tolist() == [2] * 10
    assert np.bincount(list(more.values())).tolist() == [5] * 10
    assert few.items() < more.items()
    assert max(more) < "train-00290", "the last shard is for validation"


def test_samples_are_those_of_the_whole_set(many: Path, tmp_path: Path) -> None:
    make("fashion-mnist", tmp_path / "whole", src=many)
    make("fashion-mnist-few", tmp_path / "few", src=many)
    whole: dict[str, int] = {}
    for number in range(30):
        whole |= labels_by_key(f"{tmp_path}/whole/train-{number:06d}.tar")
    assert labels_by_key(f"{tmp_path}/few/5pct-000000.tar").items() < whole.items()


def test_the_same_again_and_others_under_another_seed(many: Path, tmp_path: Path) -> None:
    digests = [make("fashion-mnist-few", tmp_path / str(n), src=many, seed=n // 2).digest for n in range(3)]
    assert digests[0] == digests[1] != digests[2]
    assert make("fashion-mnist-few", tmp_path / "0", src=many).digest == digests[0]
    assert ensure_made("fashion-mnist-few", f"{tmp_path}/0/1pct-*.tar").num_samples == 20


def test_too_few_of_a_class(many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fashion_mnist_few, "PER_CLASS", {"1pct": 40})
    with pytest.raises(DataError, match=r"T-shirt/top: \d+ training images, but 40 were asked for"):
        make("fashion-mnist-few", tmp_path / "out", src=many)
