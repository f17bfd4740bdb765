from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.shards.members import Keys
from pipeline.shards.scan import duplicate_keys, first_extensions, guess_image, scan_shard, scattered
from pipeline.shards.tar import TornTar
from pipeline.targets import tool_targets

TARGETS = tool_targets({"class_id": ("cls",), "mask": ("seg.png",)})
EXTENSIONS = st.lists(st.sampled_from(["png", "cls", "json"]), min_size=1, max_size=3, unique=True)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.sampled_from("abc"), EXTENSIONS), max_size=8))
def test_each_member_is_in_exactly_one_sample(
    tmp_path_factory: pytest.TempPathFactory, write_tar: Callable, groups: list[tuple[str, list[str]]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "scan.tar"
    write_tar(path, [(key, dict.fromkeys(extensions, b"5")) for key, extensions in groups])
    scan = scan_shard(str(path), targets=TARGETS)
    assert [(s.key, e) for s in scan.samples for e in s.extensions] == [(key, e) for key, es in groups for e in es]
    assert all(len(set(sample.extensions)) == len(sample.extensions) for sample in scan.samples)
    assert all(sample.content == ({"cls": b"5"} if "cls" in sample.extensions else {}) for sample in scan.samples)
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
    scan = scan_shard(str(tmp_path / "a.tar"), targets=TARGETS)
    assert scan.samples[0].content == {}
    assert scan.record("a").targets["class_id"]["bad"] == 1


def test_a_file_that_is_no_tar(tmp_path: Path) -> None:
    for content in (b"", b"not a tar" * 200, b"\x1f\x8b" * 600):
        (tmp_path / "a.tar").write_bytes(content)
        with pytest.raises(TornTar):
            scan_shard(str(tmp_path / "a.tar"))


def test_members_that_lie_apart_are_not_doubles(tmp_path: Path, write_tar: Callable) -> None:
    whole = {"png": b"x", "cls": b"1"}
    write_tar(
        tmp_path / "a.tar",
        [("apart", {"png": b"x"}), ("twice", whole), ("apart", {"cls": b"1"}), ("twice", whole), ("d/apart", whole)],
    )
    scan = scan_shard(str(tmp_path / "a.tar"))
    assert scattered(scan.samples) == ["apart"]
    [fault] = scan.faults("*.tar")
    assert fault.startswith("the members of 1 samples are scattered, such as those of 'apart' (png | cls)")


@pytest.mark.parametrize("headers_only", [False, True])
def test_what_lies_behind_the_end_of_the_archive_is_counted(
    tmp_path: Path, write_tar: Callable, samples: Callable, headers_only: bool
) -> None:
    first, second = (write_tar(tmp_path / f"{name}.tar", samples(3)).read_bytes() for name in "ab")
    path = tmp_path / "c.tar"
    for tail, unread in ((bytes(5000), 0), (second, len(second)), (b"\0" * 512 + b"x", 1)):
        path.write_bytes(first + tail)
        scan = scan_shard(str(path), headers_only=headers_only)
        assert (scan.unread_bytes, scan.sidecar.tar_bytes) == (unread, len(first + tail))
        assert len(list(scan.faults("*.tar"))) == (unread > 0)


def test_links_and_sparse_files(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("a.png"))
        for name, kind in (("b.png", tarfile.LNKTYPE), ("c.png", tarfile.SYMTYPE), ("README", tarfile.SYMTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "a.png"
            tar.addfile(info)
    scan = scan_shard(str(tmp_path / "a.tar"))
    assert scan.links == 2
    [fault] = scan.faults("*.tar")
    assert fault.startswith("2 members of samples are links, which have no content; write the tar with --dereference")
    with tarfile.open(tmp_path / "b.tar", "w") as tar:
        info = tarfile.TarInfo("a.png")
        info.type = tarfile.GNUTYPE_SPARSE
        tar.addfile(info)
    with pytest.raises(TornTar, match="contains a sparse file at byte 0"):
        scan_shard(str(tmp_path / "b.tar"))


def test_what_samples_lack_is_counted(tmp_path: Path, write_tar: Callable) -> None:
    image = {"JPG": b"x"}
    write_tar(
        tmp_path / "a.tar",
        [
            ("good", {**image, "cls": b"1"}),
            ("empty", {"png": b"", **image, "cls": b"1"}),  # the first image key that is there counts
            ("unlabelled", image),
            ("word", {**image, "cls": b"cat"}),
            ("README", {"md": b""}),
        ],
    )
    record = scan_shard(str(tmp_path / "a.tar"), targets=TARGETS).record("a.tar")
    assert record.without_image == 2
    assert record.targets["class_id"] == {"missing": 2, "bad": 1, "unusable": 4, "low": 1, "high": 1}
    assert record.targets["mask"] == {"missing": 5, "bad": 0, "unusable": 5}


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"img.tif": b"x", "cls": b"1"}, ("img.tif",)),
        ({"left.png": b"x", "right.png": b"x"}, Keys().image),
        ({"jpg": b"x", "seg.png": b"x"}, Keys().image),
        ({"json": b"x"}, Keys().image),
    ],
)
def test_an_image_under_one_other_extension_is_found(
    tmp_path: Path, write_tar: Callable, members: dict[str, bytes], expected: tuple[str, ...]
) -> None:
    path = write_tar(tmp_path / "a.tar", [("a", members), ("b", members)])
    assert guess_image(first_extensions(str(path)), Keys()).image == expected
