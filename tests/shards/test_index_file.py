from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import DataError
from pipeline.shards.build import build_index
from pipeline.shards.index import make_index
from pipeline.shards.index_file import decode_index, encode_index, load_index
from pipeline.shards.scan import ShardRecord

LABELS = st.one_of(st.none(), st.integers(0, 10**9))
COUNTS = {name: st.integers(0, 3) for name in ("missing", "bad", "unusable")}
CLASS_ID = st.fixed_dictionaries({**COUNTS, "low": LABELS, "high": LABELS})
MEMBERS = {"class_id": ("cls",), "mask": ("seg.png",)}
RECORDS = st.lists(
    st.builds(
        ShardRecord,
        name=st.integers(0, 10**6).map("s-{:06d}.tar".format),
        samples=st.integers(0, 10**5),
        bytes=st.integers(1024, 2**50),
        sha256=st.binary(min_size=32, max_size=32).map(bytes.hex),
        without_image=st.integers(0, 2),
        targets=st.fixed_dictionaries({"class_id": CLASS_ID, "mask": st.fixed_dictionaries(COUNTS)}),
    ),
    unique_by=lambda record: record.name,
    max_size=20,
)


@given(RECORDS, st.dictionaries(st.sampled_from(list(MEMBERS)), st.lists(st.text(), max_size=3)))
def test_the_file_gives_back_the_index(records: list[ShardRecord], classes: dict[str, list[str]]) -> None:
    index = make_index("/data", records, classes, members=MEMBERS)
    again = decode_index(encode_index(index), "/data")
    assert (again.records(), again.classes, again.members) == (records, index.classes, MEMBERS)
    assert (again.digest, again.totals) == (index.digest, index.totals)
    lows = [low for record in records if (low := record.targets["class_id"]["low"]) is not None]
    assert again.totals["class_id"]["low"] == min(lows, default=None)
    assert again.totals["mask"]["missing"] == sum(record.targets["mask"]["missing"] for record in records)
    assert again.num_samples == sum(record.samples for record in records)
    assert len(again.digest) <= 36


def test_selects_part_of_a_folder(folder: Path) -> None:
    build_index(str(folder), workers=1)
    whole, part = load_index(str(folder)), load_index(f"{folder}/train-{{000002..000000}}.tar")
    assert part.names == whole.names[::-1]
    assert part.digest != whole.digest
    assert [shard.name for shard in part.shards[:2]] == ["train-000002.tar", "train-000001.tar"]
    assert load_index(f"{folder}/train-000000.tar").num_samples == 5


def make_older(folder: Path, version: int) -> None:
    """The folder's index as an earlier version wrote it."""
    path = folder / "index.json"
    document = json.loads(path.read_text())
    shards = document["shards"] | {"label_min": [0] * document["num_shards"], "label_max": [9] * document["num_shards"]}
    document |= {"version": version, "label_key": "cls", "classes": document["classes"].get("class_id"), "lacks": {}}
    document["shards"] = shards
    for name in ("without_image", "targets", *(["image_key"] if version == 2 else [])):
        del document[name]
    path.write_text(json.dumps(document))


@pytest.mark.parametrize("version", [2, 3])
def test_an_older_index_is_brought_up_to_date_from_headers(
    tmp_path: Path, write_tar: Callable, version: int, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tar(tmp_path / "a.tar", [("a", {"png": b"x", "cls": b"1", "seg.png": b"x"}), ("b", {"png": b"x"})])
    index = build_index(str(tmp_path), classes={"class_id": ["cat", "dog"]}, workers=1)
    written = (tmp_path / "a.tar.idx").stat().st_mtime_ns
    make_older(tmp_path, version)
    capsys.readouterr()
    again = build_index(str(tmp_path), workers=1)
    assert "updating its index from an older format" in capsys.readouterr().err
    assert (again.records(), again.classes, again.digest) == (index.records(), index.classes, index.digest)
    assert again.members == {"class_id": ("cls",), "mask": ("seg.png",)}
    assert (tmp_path / "a.tar.idx").stat().st_mtime_ns == written
    assert load_index(str(tmp_path)).totals["mask"] == {"missing": 1, "bad": 0, "unusable": 1}


def test_shards_without_labels_are_indexed_without(tmp_path: Path, write_tar: Callable) -> None:
    write_tar(tmp_path / "a.tar", [("a", {"png": b"x"}), ("b", {"note": b"x"})])
    index = build_index(str(tmp_path), workers=1)
    assert (index.members, index.totals, dict(index.without_image)) == ({}, {}, {0: 1})


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda f: (f / "index.json").unlink(), "has shards but no index.json"),
        (lambda f: (f / "index.json").write_text("{"), "index.json: not an index"),
        (lambda f: (f / "index.json").write_text('{"format":"minivit-shards","version":9}'), "version 9"),
        (lambda f: make_older(f, 3), "index.json: has format 3, which only supports class numbers as labels"),
        (lambda f: (f / "train-000002.tar.idx").unlink(), r"train-000002.tar.idx: missing"),
        (lambda f: (f / "train-000002.tar.idx").write_bytes(b"x"), r"train-000002.tar.idx: found 1 bytes"),
        (lambda f: (f / "train-000002.tar").write_bytes(b"x" * 10), r"train-000002.tar: found 10 bytes, but"),
        (lambda f: (f / "train-000002.tar").unlink(), r"train-000002.tar: missing, but listed in the index"),
        (lambda f: (f / "train-000003.tar").write_bytes(b""), r"train-000003.tar: missing from"),
    ],
)
def test_a_mismatch_is_named_with_its_remedy(folder: Path, damage: Callable[[Path], object], named: str) -> None:
    build_index(str(folder), workers=1)
    damage(folder)
    with pytest.raises(DataError, match=named) as caught:
        load_index(str(folder))
    assert "minivit shards index" in str(caught.value)


@pytest.mark.parametrize("column", ["name", "samples", "sha256"])
def test_columns_must_agree(folder: Path, column: str) -> None:
    build_index(str(folder), workers=1)
    document = json.loads((folder / "index.json").read_text())
    document["shards"][column] = document["shards"][column][:-1]
    (folder / "index.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match="different lengths"):
        load_index(str(folder))


def test_a_name_may_not_leave_the_folder(folder: Path) -> None:
    build_index(str(folder), workers=1)
    path = folder / "index.json"
    path.write_text(path.read_text().replace("train-000000.tar", "../train-000000.tar"))
    with pytest.raises(DataError, match="not a tar in this folder"):
        load_index(str(folder))


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("nowhere", "found no shards"),
        ("val-*.tar", "found no shards|matches none"),
        ("train-{000002..000004}.tar", r" lacks train-000003.tar \(and 1 more\)"),
    ],
)
def test_patterns_that_miss(folder: Path, pattern: str, words: str) -> None:
    build_index(str(folder), workers=1)
    with pytest.raises(DataError, match=words):
        load_index(f"{folder}/{pattern}")


def test_a_vast_index_loads_quickly_without_touching_a_tar(tmp_path: Path) -> None:
    names = (f"train-{i:06d}.tar" for i in range(200_000))
    summary = {"missing": 0, "bad": 0, "unusable": 0, "low": 0, "high": 999}
    records = [
        ShardRecord(name, 10_000, 2**30, f"{i:064x}", targets={"class_id": summary}) for i, name in enumerate(names)
    ]
    index = make_index(str(tmp_path), records, members={"class_id": ("cls",)})
    (tmp_path / "index.json").write_bytes(encode_index(index))
    code = (
        "import sys, time; from pipeline.shards.index_file import load_index; began = time.monotonic();"
        "index = load_index(sys.argv[1], check=False); shard = index.shards[199_999];"
        "print(index.num_samples, time.monotonic() - began);"
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    output = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True, text=True)
    samples, seconds, kilobytes = output.stdout.split()
    assert int(samples) == 2 * 10**9
    assert float(seconds) < 3  # 0.3 s on an idle core
    assert int(kilobytes) < 200_000
