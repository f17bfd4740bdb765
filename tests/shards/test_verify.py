from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.errors import DataError
from pipeline.shards.build import build_index
from pipeline.shards.named_sets import named_set
from pipeline.shards.verify import Kind, verify_shards


def faults(folder: Path) -> list[tuple[str, str | None, str]]:
    return [(Path(f.shard).name, f.key, f.message) for f in verify_shards(str(folder), decode_images=False, workers=1)]


def test_sound_shards_have_no_faults(folder: Path) -> None:
    build_index(str(folder), classes=list("abcdefghij"), workers=1)
    assert faults(folder) == []
    assert list(verify_shards(str(folder), decode_images=False, workers=2)) == []


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: data[:3000], "ends at byte 3000"),
        (lambda data: data[:600] + b"\xff" + data[601:], "SHA-256"),
        (lambda data: b"?" + data[1:], "no valid member header at byte 0"),
        (lambda data: data + bytes(512), "bytes, but"),
    ],
)
def test_each_damage_names_its_shard(folder: Path, damage: Callable[[bytes], bytes], words: str) -> None:
    build_index(str(folder), workers=1)
    path = folder / "train-000002.tar"
    data = path.read_bytes()
    path.write_bytes(damage(data))
    [(shard, key, message)] = faults(folder)
    assert (shard, key) == (path.name, None)
    assert words in message


def test_missing_unknown_and_foreign_files(folder: Path, samples: Callable, write_tar: Callable) -> None:
    build_index(str(folder), workers=1)
    (folder / "train-000000.tar").unlink()
    (folder / "train-000001.tar.idx").write_bytes((folder / "train-000002.tar.idx").read_bytes())
    write_tar(folder / "extra.tar", samples(1))
    assert [(shard, message.split(";")[0]) for shard, _, message in faults(folder)] == [
        ("extra.tar", "not in the index"),
        ("train-000000.tar", "no such file"),
        ("train-000001.tar", "its sidecar belongs to another tar than the one in the index"),
    ]


def test_offsets_that_point_elsewhere(folder: Path) -> None:
    build_index(str(folder), workers=1)
    path = folder / "train-000002.tar.idx"
    data = bytearray(path.read_bytes())
    data[-15] += 2  # one sample is said to begin a block later
    path.write_bytes(data)
    assert faults(folder) == [("train-000002.tar", None, "its sidecar's offsets are not where the samples begin")]


def test_bad_samples_are_named_by_key(tmp_path: Path, write_tar: Callable) -> None:
    image = {"png": b"x"}
    build = [
        ("good", {**image, "cls": b"1"}),
        ("unlabelled", image),
        ("word", {**image, "cls": b"cat"}),
        ("outside", {**image, "cls": b"2"}),
        ("blind", {"cls": b"0"}),
        ("good", {**image, "cls": b"1"}),
    ]
    write_tar(tmp_path / "a.tar", build)
    build_index(str(tmp_path), workers=1)
    index = (tmp_path / "index.json").read_text().replace('"classes":{}', '"classes":{"class_id":["a","b"]}')
    (tmp_path / "index.json").write_text(index)
    assert [(key, message) for _, key, message in faults(tmp_path)] == [
        ("good", "duplicate key"),
        ("unlabelled", "no class_id member (looked for cls; found png)"),
        ("word", "the label is 'cat', not a class number"),
        (
            "outside",
            "has label 2, but labels must be 0 to 1 for 2 classes; correct the label or the dataset's `classes`",
        ),
        ("blind", "no image member (looked for png, jpg, jpeg, webp; found cls)"),
    ]


def test_without_an_index_there_is_nothing_to_compare(folder: Path) -> None:
    with pytest.raises(DataError, match=r"has shards but no index.json; run `minivit shards index"):
        list(verify_shards(str(folder)))


def png(level: int) -> bytes:
    return cv2.imencode(".png", np.full((6, 6), level, np.uint8))[1].tobytes()


def test_doubles_of_the_source_are_no_damage(tmp_path: Path, write_tar: Callable) -> None:
    two = [("a", {"png": png(1), "cls": b"0"}), ("b", {"png": png(1), "cls": b"1"})]
    write_tar(tmp_path / "a.tar", two + two)
    build_index(str(tmp_path), workers=1)
    found = list(verify_shards(str(tmp_path), workers=1))
    assert len(found) == 5
    assert {fault.kind for fault in found} == {Kind.DOUBLE}


def test_images_and_shards_of_two_sets_are_reported(tmp_path: Path, write_tar: Callable) -> None:
    for name, levels in (("train-0", (1, 2, 3)), ("train-1", (4, 5)), ("val-0", (6, 2, 5))):
        samples = [(f"{name}-{level}", {"png": png(level), "cls": b"0"}) for level in levels]
        write_tar(tmp_path / f"{name}.tar", samples)
    build_index(str(tmp_path), workers=1)
    found = list(verify_shards(f"{tmp_path}/train-*.tar", f"{tmp_path}/val-*.tar", workers=1))
    assert [(Path(f.shard).name, f.key, f.message.split(": ")[-1], f.kind) for f in found] == [
        ("val-0.tar", "val-0-2", "train-0.tar/train-0-2", Kind.OVERLAP),
        ("val-0.tar", "val-0-5", "train-1.tar/train-1-5", Kind.OVERLAP),
    ]
    [shard] = verify_shards(
        f"{tmp_path}/train-*.tar", f"{tmp_path}/{{train-1,val-0}}.tar", workers=1, decode_images=False
    )
    assert (Path(shard.shard).name, shard.key, shard.kind) == ("train-1.tar", None, Kind.OVERLAP)


def test_tears_in_several_shards_are_named_and_are_no_doubles(folder: Path, samples: Callable) -> None:
    build_index(str(folder), workers=1)
    for number in (0, 2):
        path = folder / f"train-{number:06d}.tar"
        data = path.read_bytes()
        path.write_bytes(b"?" + data[1:])
    found = [(Path(f.shard).name, f.key) for f in verify_shards(str(folder), workers=1) if f.kind is Kind.SHARD]
    assert found == [(f"train-{number:06d}.tar", None) for number in (0, 2)]
    assert Kind.DOUBLE not in {fault.kind for fault in verify_shards(str(folder), workers=1)}


@pytest.mark.parametrize("kept", [1024, 3000, 8192])
def test_a_torn_shard_is_one_fault(folder: Path, kept: int) -> None:
    build_index(str(folder), workers=1)
    path = folder / "train-000000.tar"
    path.write_bytes(path.read_bytes()[:kept])
    [fault] = [fault for fault in verify_shards(str(folder), workers=1) if fault.kind is Kind.SHARD]
    assert (Path(fault.shard).name, fault.key) == (path.name, None)


def test_the_members_named_by_other_keys_are_looked_at(tmp_path: Path, write_tar: Callable) -> None:
    write_tar(tmp_path / "a.tar", [("a", {"left.png": png(1), "right.png": b"torn", "y": b"1"})])
    build_index(str(tmp_path), workers=1)
    assert len(list(verify_shards(str(tmp_path), workers=1))) == 1
    assert list(verify_shards(named_set(str(tmp_path), "left.png", {"class_id": "y"}), workers=1)) == []
    [fault] = verify_shards(named_set(str(tmp_path), "right.png", {"class_id": "y"}), workers=1)
    assert "no readable image header" in fault.message


def test_an_index_of_headers_knows_one_label(folder: Path) -> None:
    build_index(str(folder), headers_only=True, workers=1)
    with pytest.raises(DataError, match=r"--target class_id=note"):
        list(verify_shards(named_set(str(folder), targets={"class_id": "note"}), workers=1))


def test_masks_are_looked_at_beside_their_images(tmp_path: Path, write_tar: Callable) -> None:
    mask = {size: cv2.imencode(".png", np.full((size, size), 1, np.uint8))[1].tobytes() for size in (6, 5)}
    write_tar(
        tmp_path / "a.tar",
        [
            ("good", {"png": png(1), "seg.png": mask[6]}),
            ("small", {"png": png(2), "seg.png": mask[5]}),
            ("torn", {"png": png(3), "seg.png": b"torn"}),
            ("none", {"png": png(4)}),
        ],
    )
    index = build_index(str(tmp_path), classes={"mask": ["wall", "door"]}, workers=1)
    assert index.totals == {"mask": {"missing": 1, "bad": 0, "unusable": 1}}
    found = {fault.key: fault.message for fault in verify_shards(str(tmp_path), workers=1)}
    assert found.keys() == {"small", "torn", "none"}
    assert "5 x 5 pixels, but its image 6 x 6" in found["small"]
    assert found["none"] == "no mask member (looked for seg.png; found png)"


def test_compressed_tars_and_links_are_faults(tmp_path: Path) -> None:
    for kind in (tarfile.REGTYPE, tarfile.SYMTYPE):
        with tarfile.open(tmp_path / "a.tar", "w") as tar:
            info = tarfile.TarInfo("a.png")
            info.type = kind
            tar.addfile(info)
        if kind == tarfile.REGTYPE:
            build_index(str(tmp_path), workers=1)
    (tmp_path / "b.tar.gz").write_bytes(b"")
    found = [(Path(fault.shard).name, fault.message) for fault in verify_shards(str(tmp_path), workers=1)]
    assert [shard for shard, _ in found] == ["b.tar.gz", "a.tar", "a.tar"]
    assert "a compressed tar" in found[0][1]
    assert found[2][1].startswith("1 members of samples are links")
