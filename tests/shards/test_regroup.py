from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import DataError
from pipeline.shards.build import build_index
from pipeline.shards.index import DatasetIndex
from pipeline.shards.regroup import regroup
from pipeline.shards.samples import shard_samples

Contents = list[tuple[str, dict[str, bytes]]]


def contents(index: DatasetIndex) -> Contents:
    return [
        (key, {name: bytes(data) for name, data in (members or {}).items()})
        for shard in index.shards
        for _, key, members, _ in shard_samples(shard)
    ]


def in_pieces(samples: Contents) -> Contents:
    """All images first, then everything else."""
    images = [(key, {"png": members["png"]}) for key, members in samples]
    return images + [(key, {k: v for k, v in members.items() if k != "png"}) for key, members in samples]


def test_pieces_come_together_as_they_were(tmp_path: Path, samples: Callable, write_tar: Callable) -> None:
    for number in range(3):
        write_tar(tmp_path / f"{number}.tar", in_pieces(samples(40, first=40 * number)))
    index = regroup(str(tmp_path), tmp_path / "out", workers=2)
    assert index.names == ["0.tar", "1.tar", "2.tar"]
    assert contents(index) == samples(120)


def test_doubles_stay_two_samples(tmp_path: Path, samples: Callable, write_tar: Callable) -> None:
    write_tar(tmp_path / "a.tar", [*samples(2), *in_pieces(samples(3))])
    index = regroup(str(tmp_path), tmp_path / "out", workers=1)
    assert contents(index) == [*samples(2), *samples(3)]


def test_several_tars_in_one_file_become_one(
    tmp_path: Path, samples: Callable, write_tar: Callable, capfd: pytest.CaptureFixture[str]
) -> None:
    parts = [write_tar(tmp_path / "part", samples(4, first=first)).read_bytes() for first in (0, 4)]
    (tmp_path / "a.tar").write_bytes(b"".join(parts))
    (tmp_path / "b.tar").write_bytes(parts[0] + b"rubbish" * 100)
    index = regroup(str(tmp_path), tmp_path / "out", workers=1)
    assert contents(index) == [*samples(8), *samples(4)]
    assert "b.tar: left out its last 700 bytes, which are not a tar" in capfd.readouterr().err


def test_a_remote_tar_is_copied_first(samples: Callable, write_tar: Callable, tmp_path: Path) -> None:
    import fsspec

    data = write_tar(tmp_path / "a.tar", in_pieces(samples(5))).read_bytes()
    fsspec.filesystem("memory").pipe_file("/regroup/a.tar", data)
    index = regroup("memory://regroup/a.tar", tmp_path / "out", workers=1)
    assert contents(index) == samples(5)


def test_a_torn_tar_is_named_and_the_source_is_left_alone(
    tmp_path: Path, samples: Callable, write_tar: Callable
) -> None:
    path = write_tar(tmp_path / "a.tar", samples(5))
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DataError, match=r"a.tar: ends at byte 2000"):
        regroup(str(tmp_path), tmp_path / "out", workers=1)
    assert list((tmp_path / "out").glob("*.tar*")) == []


def test_what_cannot_be_regrouped(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="this is the source folder"):
        regroup(str(folder), folder)
    with pytest.raises(DataError, match="found no shards"):
        regroup(f"{folder}/none-*.tar", tmp_path / "out")


def test_a_sound_set_comes_out_the_same(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    out = regroup(str(folder), tmp_path_factory.mktemp("out"), workers=1)
    assert contents(out) == contents(build_index(str(folder), workers=1))
