from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import DataError
from pipeline.shards.build import build_index
from pipeline.shards.verify import verify


def faults(folder: Path) -> list[tuple[str, str | None, str]]:
    return [(Path(f.shard).name, f.key, f.message) for f in verify(str(folder), decode_images=False, workers=1)]


def test_sound_shards_have_no_faults(folder: Path) -> None:
    build_index(str(folder), classes=list("abcdefghij"), workers=1)
    assert faults(folder) == []
    assert list(verify(str(folder), decode_images=False, workers=2)) == []


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
        ("train-000001.tar", "its sidecar belongs to another tar than the index describes"),
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
    index = (tmp_path / "index.json").read_text().replace('"classes":null', '"classes":["a","b"]')
    (tmp_path / "index.json").write_text(index)
    assert [(key, message) for _, key, message in faults(tmp_path)] == [
        ("good", "this key was there before"),
        ("unlabelled", "no label member (looked for cls; found png)"),
        ("word", "its label (cls) is not a class number"),
        ("outside", "label 2 is outside the 2 classes"),
        ("blind", "no image member (looked for png, jpg, jpeg, webp; found cls)"),
    ]


def test_without_an_index_there_is_nothing_to_compare(folder: Path) -> None:
    with pytest.raises(DataError, match=r"holds shards but no index.json; run `minivit shards index"):
        list(verify(str(folder)))
