from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from pipeline.errors import DataError
from pipeline.shards.build import build_index
from pipeline.shards.scan import scan_shard
from pipeline.shards.tar import TornTar, read_sample

SPARSE = {
    "GNU tar, gnu": ["tar", "--format=gnu", "--sparse"],
    "GNU tar, oldgnu": ["tar", "--format=oldgnu", "--sparse"],
    "GNU tar, posix 0.0": ["tar", "--format=posix", "--sparse", "--sparse-version=0.0"],
    "GNU tar, posix 0.1": ["tar", "--format=posix", "--sparse", "--sparse-version=0.1"],
    "GNU tar, posix 1.0": ["tar", "--format=posix", "--sparse", "--sparse-version=1.0"],
    "bsdtar, pax": ["bsdtar", "--format=pax", "--read-sparse"],
    "bsdtar, its default": ["bsdtar", "--read-sparse"],
}


@pytest.fixture
def holes(tmp_path: Path) -> bytes:
    """Write `files/a.png`, a megabyte with few bytes that are not zero, and `files/a.cls`; skip if no hole is kept."""
    content = bytes(500_000) + b"pixels" + bytes(548_000)
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a.cls").write_bytes(b"3")
    with open(tmp_path / "files" / "a.png", "wb") as file:
        file.seek(500_000)
        file.write(b"pixels")
        file.truncate(len(content))
    if os.stat(tmp_path / "files" / "a.png").st_blocks * 512 > len(content) // 2:
        pytest.skip("needs a file system with sparse files")
    return content


def pack(folder: Path, *command: str) -> Path:
    if shutil.which(command[0]) is None:
        pytest.skip(f"needs {command[0]}")
    subprocess.run([*command, "-cf", folder / "a.tar", "-C", folder / "files", "a.png", "a.cls"], check=True)
    return folder / "a.tar"


def refused_by_both(path: Path, words: str) -> None:
    """The scan of an index and the reader of samples refuse a tar, in one sentence."""
    with pytest.raises(DataError, match=rf"{path.name}: contains {words} at byte \d+, which is not supported; write"):
        build_index(str(path), workers=1)
    with pytest.raises(TornTar, match=words):
        scan_shard(str(path), headers_only=True)
    with pytest.raises(TornTar, match=words):
        read_sample(path.read_bytes())


@pytest.mark.parametrize("command", SPARSE.values(), ids=SPARSE.keys())
def test_sparse_files_of_all_tools_are_refused(command: list[str], tmp_path: Path, holes: bytes) -> None:
    path = pack(tmp_path, *command)
    assert path.stat().st_size < 100_000  # the holes are left out
    refused_by_both(path, "a sparse file")


@pytest.mark.parametrize("command", [["tar", "--format=posix"], ["bsdtar", "--no-read-sparse"]], ids=["GNU", "bsd"])
def test_the_remedy_gives_all_bytes(command: list[str], tmp_path: Path, holes: bytes) -> None:
    path = pack(tmp_path, *command)
    [sample] = scan_shard(str(path)).samples
    assert sample.extensions == {"png": len(holes), "cls": 1}
    end = int(scan_shard(str(path)).sidecar.offsets[-1])
    assert read_sample(path.read_bytes()[:end]) == ("a", {"png": holes, "cls": b"3"})


@pytest.mark.parametrize("form", ["gnu", "posix"])
def test_every_volume_of_a_split_tar_is_refused(form: str, tmp_path: Path) -> None:
    """A last volume that has whole members, too, is an intact tar, but begins in the middle of a file."""
    for name, size in (("a.png", 30_000), ("b.png", 9000), ("c.png", 1)):
        (tmp_path / name).write_bytes(b"x" * size)
    volumes = [f"--file={number}.tar" for number in range(3)]
    split = ["tar", "--create", "--multi-volume", "--tape-length=20", f"--format={form}", *volumes]
    subprocess.run([*split, "a.png", "b.png", "c.png"], cwd=tmp_path, check=True)
    for number in range(3):
        with pytest.raises(TornTar, match=r"ends at byte|contains a part of a file at byte"):
            scan_shard(str(tmp_path / f"{number}.tar"))
    refused_by_both(tmp_path / "2.tar", "a part of a file")


def with_pax(values: dict[str, str], size: int = 700, kind: bytes = tarfile.REGTYPE, shared: bool = False) -> bytes:
    """A tar with one member, 700 bytes of content and `size` in its header, after a pax record of these values."""
    info = tarfile.TarInfo("a.png")
    info.size, info.type, info.linkname = size, kind, "b.png" if kind == tarfile.LNKTYPE else ""
    if not shared:
        info.pax_headers = values
    header = info.tobuf(tarfile.PAX_FORMAT)
    if shared:
        header = tarfile.TarInfo.create_pax_global_header(values) + header
    return header + b"x" * 700 + bytes(68 + 1024)


@pytest.mark.parametrize(
    ("values", "shared", "words"),
    [
        ({"GNU.sparse.map": "0,700"}, False, "a sparse file"),
        ({"SCHILY.realsize": "5000"}, False, "a sparse file"),  # star
        ({"SUN.holesdata": " 0 700 5000"}, False, "a sparse file"),  # Solaris
        ({"GNU.sparse.major": "1"}, True, "a sparse file"),
        ({"GNU.volume.offset": "512"}, True, "a part of a file"),
        ({"size": "600"}, True, "a name or size for all its members"),
        ({"path": "b.png"}, True, "a name or size for all its members"),
    ],
)
def test_records_that_change_what_the_content_is_are_refused(
    values: dict[str, str], shared: bool, words: str, tmp_path: Path
) -> None:
    (tmp_path / "a.tar").write_bytes(with_pax(values, shared=shared))
    refused_by_both(tmp_path / "a.tar", words)


@pytest.mark.parametrize("values", [{"comment": "a commit"}, {"GNU.volume.label": "train"}, {"mtime": "1.5"}])
def test_other_shared_records_are_passed_over(values: dict[str, str], tmp_path: Path) -> None:
    """As git writes one."""
    data = with_pax(values, shared=True)
    (tmp_path / "a.tar").write_bytes(data)
    scan = scan_shard(str(tmp_path / "a.tar"))
    assert scan.samples[0].extensions == {"png": 700}
    assert read_sample(data[: int(scan.sidecar.offsets[1])]) == ("a", {"png": b"x" * 700})


@pytest.mark.parametrize("in_header", [0, 5, 700])
def test_a_size_in_a_record_replaces_that_of_the_header(in_header: int) -> None:
    data = with_pax({"size": "700"}, in_header)
    assert read_sample(data) == ("a", {"png": b"x" * 700})
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert [member.size for member in tar] == [700]


def test_a_hard_link_with_content_is_refused() -> None:
    """POSIX allows it, by `pax -o linkdata`; most tools do not read the content, either."""
    with pytest.raises(TornTar, match="has no valid member header at byte"):
        read_sample(with_pax({}, kind=tarfile.LNKTYPE))
