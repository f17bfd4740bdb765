from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import DataError
from pipeline.shards.first_read import first_offsets
from pipeline.shards.scan import scan_shard
from pipeline.shards.sidecar import read_sidecar

IDENTITY = "ab" * 32


@pytest.fixture
def shard(tmp_path: Path, samples: Callable, write_tar: Callable) -> Path:
    path: Path = write_tar(tmp_path / "a.tar", samples(4))
    return path


def test_they_are_kept_beside_the_shard(shard: Path) -> None:
    expected = scan_shard(str(shard)).sidecar.offsets
    offsets = first_offsets(str(shard), 4, shard.stat().st_size, IDENTITY)
    sidecar = read_sidecar(str(shard))
    assert offsets.tolist() == sidecar.offsets.tolist() == expected.tolist()
    assert (sidecar.sha256, sidecar.tar_bytes) == (IDENTITY, shard.stat().st_size)


def test_a_folder_that_takes_no_files_does_not_matter(shard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise DataError("read-only")

    monkeypatch.setattr("pipeline.shards.first_read.write_sidecar", refuse)
    assert len(first_offsets(str(shard), 4, shard.stat().st_size, IDENTITY)) == 5


@pytest.mark.parametrize(("samples_counted", "more_bytes"), [(3, 0), (5, 0), (4, 512)])
def test_a_shard_that_was_counted_wrongly_is_refused(shard: Path, samples_counted: int, more_bytes: int) -> None:
    with pytest.raises(DataError, match=r"a\.tar: found 4 samples in .* but its count says"):
        first_offsets(str(shard), samples_counted, shard.stat().st_size + more_bytes, IDENTITY)
    assert not shard.with_name("a.tar.idx").exists()


def test_a_torn_shard_is_refused(shard: Path) -> None:
    size = shard.stat().st_size
    shard.write_bytes(shard.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"a\.tar: ends at byte"):
        first_offsets(str(shard), 4, size, IDENTITY)


def test_the_offsets_of_megatron_energon_are_taken_and_left_alone(shard: Path) -> None:
    expected, beside = scan_shard(str(shard)).sidecar.offsets.tolist(), shard.with_name("a.tar.idx")
    theirs = struct.pack("<5Q", *expected)
    beside.write_bytes(theirs)
    assert first_offsets(str(shard), 4, shard.stat().st_size, IDENTITY).tolist() == expected
    beside.write_bytes(theirs[:-8])  # of another tar
    assert first_offsets(str(shard), 4, shard.stat().st_size, IDENTITY).tolist() == expected
    assert beside.read_bytes() == theirs[:-8]
