from __future__ import annotations

import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import DataError
from pipeline.shards.build import build_index, write_index
from pipeline.shards.index import make_index
from pipeline.shards.index_file import load_index
from pipeline.shards.scan import scan_shard
from pipeline.shards.sidecar import read_sidecar
from pipeline.shards.write import ShardWriter, TarWriter
from pipeline.targets import tool_targets


@settings(deadline=None, max_examples=30)
@given(count=st.integers(0, 20), per_shard=st.integers(1, 7))
def test_writes_what_a_scan_finds(
    tmp_path_factory: pytest.TempPathFactory, samples: Callable, count: int, per_shard: int
) -> None:
    folder = tmp_path_factory.mktemp("w")
    targets = tool_targets({"class_id": ("cls",), "mask": ("txt",)})
    with ShardWriter(folder, "train", per_shard, targets) as writer:
        for key, members in samples(count):
            writer.write(key, members)
    assert [record.samples for record in writer.records] == [
        min(per_shard, count - first) for first in range(0, count, per_shard)
    ]
    for record in writer.records:
        scan = scan_shard(str(folder / record.name), targets=targets)
        assert scan.record(record.name) == record
        assert scan.sidecar.encode() == read_sidecar(str(folder / record.name)).encode()


def test_other_tools_read_it(tmp_path: Path, samples: Callable) -> None:
    with ShardWriter(tmp_path, "a", 10) as writer:
        for key, members in samples(3):
            writer.write(f"{'long' * 60}/{key}-é", members)
    with tarfile.open(tmp_path / "a-000000.tar") as tar:
        found = [(member.name, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
    assert found == [
        (f"{'long' * 60}/{key}-é.{extension}", data)
        for key, members in samples(3)
        for extension, data in members.items()
    ]


def test_equal_samples_give_equal_bytes(tmp_path: Path, samples: Callable) -> None:
    for name in ("a", "b"):
        with ShardWriter(tmp_path / name, "x", 4) as writer:
            for key, members in samples(9):
                writer.write(key, members)
    assert [p.read_bytes() for p in sorted((tmp_path / "a").iterdir())] == [
        p.read_bytes() for p in sorted((tmp_path / "b").iterdir())
    ]


def test_an_error_leaves_whole_shards_and_no_traces(tmp_path: Path, samples: Callable) -> None:
    def write_until_it_breaks() -> None:
        with ShardWriter(tmp_path, "x", 4) as writer:
            for key, members in samples(6):
                writer.write(key, members)
            raise KeyError("the source broke")

    with pytest.raises(KeyError):
        write_until_it_breaks()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x-000000.tar", "x-000000.tar.idx"]


@pytest.mark.parametrize("moment", ["tarfile.TarInfo.tobuf", "os.fsync", "os.replace", "pathlib.Path.unlink"])
def test_killed_at_any_moment_no_index_vouches_for_another_tar(tmp_path: Path, samples: Callable, moment: str) -> None:
    """An older shard is replaced by one of another content; the process dies in the middle."""
    with TarWriter(tmp_path / "x.tar") as tar:
        tar.write("old", {"cls": b"1"})
        record = tar.finish()
    write_index(make_index(str(tmp_path), [record]))
    module, _, name = moment.rpartition(".")
    code = f"""
import os, pathlib, tarfile
from pipeline.shards.write import TarWriter
{module}.{name} = lambda *a, **k: os._exit(9)
with TarWriter(pathlib.Path({str(tmp_path)!r}) / "x.tar") as tar:
    tar.write("new", {{"cls": b"2"}})
    tar.finish()
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 9
    scan = scan_shard(str(tmp_path / "x.tar"))  # whole, whichever it is
    assert scan.samples[0].key == "old"
    try:
        assert load_index(str(tmp_path)).shards[0].sha256 == scan.sidecar.sha256
    except DataError:
        assert build_index(str(tmp_path), workers=1).sha256 == scan.sidecar.sha256


def test_killed_between_tar_and_sidecar_the_mismatch_shows(tmp_path: Path) -> None:
    with TarWriter(tmp_path / "x.tar") as tar:
        tar.write("old", {"cls": b"1"})
        write_index(make_index(str(tmp_path), [tar.finish()]))
    code = f"""
import os, pathlib
import pipeline.shards.write as write
write.write_sidecar = lambda *a: os._exit(9)
with write.TarWriter(pathlib.Path({str(tmp_path)!r}) / "x.tar") as tar:
    tar.write("new", {{"cls": b"2"}})
    tar.finish()
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 9
    with pytest.raises(DataError, match=r"x.tar.idx: missing; run `minivit shards index"):
        load_index(str(tmp_path))
    assert build_index(str(tmp_path), workers=1).totals["class_id"]["low"] == 2


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    """A limit on the file size stands in for the disk: both end in an OSError from the write."""
    code = f"""
import pathlib, resource, signal
from pipeline.shards.write import TarWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
with TarWriter(pathlib.Path({str(tmp_path)!r}) / "x.tar") as tar:
    tar.write("a", {{"png": bytes(200_000)}})
    tar.finish()
"""
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr
    assert output.splitlines()[-1].startswith("pipeline.errors.DataError: ")
    assert "x.tar: cannot be written (File too large)" in output
    assert list(tmp_path.iterdir()) == []


def test_a_key_with_a_dot_is_our_own_mistake(tmp_path: Path) -> None:
    with TarWriter(tmp_path / "x.tar") as tar, pytest.raises(AssertionError):
        tar.write("a.b", {"cls": b"1"})
