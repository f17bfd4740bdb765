from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import DataError
from pipeline.shards.build import build_index
from pipeline.shards.index import DatasetIndex
from pipeline.shards.rewrite import split_samples
from pipeline.shards.samples import shard_samples


def contents(index: DatasetIndex) -> list[tuple[str, dict[str, bytes]]]:
    return [
        (key, {name: bytes(data) for name, data in members.items()})
        for shard in index.shards
        for _, key, members, _ in shard_samples(shard)
    ]


@pytest.fixture
def source(folder: Path, samples, write_tar) -> DatasetIndex:
    write_tar(folder / "train-000003.tar", samples(40, first=8))
    return build_index(str(folder), classes=[str(label) for label in range(10)], workers=1)


@pytest.mark.parametrize("name", ["out", "o#u?t%20 [x]*{y}"])
def test_resharding_evens_out_and_keeps_order_and_bytes(source: DatasetIndex, tmp_path: Path, name: str) -> None:
    out = split_samples(source, tmp_path / name, parts={"train": 1}, samples_per_shard=11, shuffle_seed=None, workers=1)
    assert source.counts.tolist() == [5, 0, 3, 40]
    assert out.counts.tolist() == [10, 10, 10, 9, 9]
    assert contents(out) == contents(source)
    assert (out.classes, out.totals) == (source.classes, source.totals)


def test_splitting_puts_each_sample_in_one_part(source: DatasetIndex, tmp_path: Path) -> None:
    parts = {"train": 0.75, "val": 0.25}
    split_samples(source, tmp_path / "out", parts=parts, samples_per_shard=20, shuffle_seed=1, workers=2)
    train, val = (build_index(f"{tmp_path}/out/{name}-*.tar", workers=1) for name in parts)
    assert (train.num_samples, val.num_samples) == (36, 12)
    assert sorted(contents(train) + contents(val)) == sorted(contents(source))
    assert contents(train) != contents(source)[:36]


def test_it_goes_on_where_it_stopped_and_knows_its_own_work(source: DatasetIndex, tmp_path: Path) -> None:
    settings = {"parts": {"train": 1}, "samples_per_shard": 11, "shuffle_seed": 5, "workers": 1}
    first = split_samples(source, tmp_path / "out", **settings)
    kept = tmp_path / "out" / "train-000000.tar"
    written = kept.stat().st_mtime_ns
    (tmp_path / "out" / "train-000001.tar").unlink()
    assert split_samples(source, tmp_path / "out", **settings).digest == first.digest
    assert kept.stat().st_mtime_ns == written
    with pytest.raises(DataError, match="made with another seed; choose another --out"):
        split_samples(source, tmp_path / "out", **settings | {"shuffle_seed": 6})


@pytest.mark.parametrize("parts", [{"a": 0.5}, {"a": 1.5, "b": -0.5}, {"a": 0.5, "b": 0.6}])
def test_shares_must_add_up(source: DatasetIndex, tmp_path: Path, parts: dict[str, float]) -> None:
    with pytest.raises(DataError, match="shares above 0 that add up to 1"):
        split_samples(source, tmp_path / "out", parts=parts, samples_per_shard=5, shuffle_seed=0)


def test_the_source_is_left_alone(source: DatasetIndex, folder: Path) -> None:
    with pytest.raises(DataError, match="this is the source folder"):
        split_samples(source, folder, parts={"train": 1}, samples_per_shard=5, shuffle_seed=0)


def test_a_torn_sample_is_named(source: DatasetIndex, folder: Path, tmp_path: Path) -> None:
    path = folder / "train-000000.tar"
    data = bytearray(path.read_bytes())
    data[0] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"train-000000\.tar: sample 0 has no valid member header"):
        split_samples(source, tmp_path / "out", parts={"train": 1}, samples_per_shard=5, shuffle_seed=None, workers=1)
