from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.shards.scan import duplicate_keys, scan_shard
from pipeline.shards.tar import TornTar

EXTENSIONS = st.lists(st.sampled_from(["png", "cls", "json"]), min_size=1, max_size=3, unique=True)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.sampled_from("abc"), EXTENSIONS), max_size=8))
def test_each_member_is_in_exactly_one_sample(
    tmp_path_factory: pytest.TempPathFactory, write_tar: Callable, groups: list[tuple[str, list[str]]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "scan.tar"
    write_tar(path, [(key, dict.fromkeys(extensions, b"5")) for key, extensions in groups])
    scan = scan_shard(str(path))
    assert [(s.key, e) for s in scan.samples for e in s.extensions] == [(key, e) for key, es in groups for e in es]
    assert all(len(set(sample.extensions)) == len(sample.extensions) for sample in scan.samples)
    assert all(sample.label == (5 if "cls" in sample.extensions else None) for sample in scan.samples)
    keys = [sample.key for sample in scan.samples]
    assert len(list(duplicate_keys(scan.samples))) == len(keys) - len(set(keys))
    assert scan.sidecar.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert scan.sidecar.tar_bytes == path.stat().st_size


def test_members_without_a_sample_do_not_count(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("README", "a.cls", "LICENSE", ".hidden"):
            tar.addfile(tarfile.TarInfo(name))
    scan = scan_shard(str(tmp_path / "a.tar"))
    assert [sample.key for sample in scan.samples] == ["a"]
    assert scan.sidecar.offsets.tolist() == [512, 1024]


def test_an_endless_label_is_not_read_as_a_number(tmp_path: Path, write_tar: Callable) -> None:
    write_tar(tmp_path / "a.tar", [("a", {"cls": b"1" * 5000})])
    assert scan_shard(str(tmp_path / "a.tar")).samples[0].label is None


def test_a_file_that_is_no_tar(tmp_path: Path) -> None:
    for content in (b"", b"not a tar" * 200, b"\x1f\x8b" * 600):
        (tmp_path / "a.tar").write_bytes(content)
        with pytest.raises(TornTar):
            scan_shard(str(tmp_path / "a.tar"))
