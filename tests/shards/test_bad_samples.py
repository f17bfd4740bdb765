from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import DataError
from pipeline.shards.bad_samples import Reason, read_quarantine, summarise


def line(index: int, reason: str = "torn", shard: str = "a.tar", **changes: Any) -> dict[str, Any]:
    return {"dataset": "t", "shard": shard, "index": index, "key": f"s{index}", "reason": reason, **changes}


def write(path: Path, *lines: dict[str, Any]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_every_sample_counts_once_whoever_noted_it_and_however_often(tmp_path: Path) -> None:
    write(tmp_path / "bad.rank0-worker0.jsonl", line(4), line(1), line(1, shard="b.tar"))
    write(tmp_path / "bad.rank1-worker0.jsonl", line(4), line(4, dataset="u"), line(0))
    write(tmp_path / "bad-val.rank0-worker0.jsonl", line(9))
    found = [(line["dataset"], line["shard"], line["index"]) for line in read_quarantine(tmp_path / "bad.jsonl")]
    assert found == [("t", "a.tar", 0), ("t", "a.tar", 1), ("t", "a.tar", 4), ("t", "b.tar", 1), ("u", "a.tar", 4)]
    assert [line["index"] for line in read_quarantine(tmp_path / "bad-val.jsonl")] == [9]


def test_a_manifest_that_is_one_file_counts_too(tmp_path: Path) -> None:
    write(tmp_path / "bad.jsonl", {"shard": "a.tar", "key": "x"}, {"shard": "a.tar", "key": "y"})
    assert [line["key"] for line in read_quarantine(tmp_path / "bad.jsonl")] == ["x", "y"]


def test_reasons_that_differ_in_details_alone_are_one(tmp_path: Path) -> None:
    write(
        tmp_path / "bad.w.jsonl",
        *(line(n, f"the image has {n}000 x {n}000 pixels, more than 9") for n in (5, 6, 7)),
        line(0, "the label is 'cat', not a number"),
        line(1, "the label is 'dog (wet)', not a number"),
        line(2, "no image member (looked for png; found txt)"),
        line(3, "the image is empty"),
    )
    found = summarise(tmp_path / "bad.jsonl", 100)
    assert (found.bad, found.samples) == (7, 100)
    assert found.reasons == [
        Reason("the image has 5000 x 5000 pixels, more than 9", 3, "a.tar/s5"),
        Reason("the label is 'cat', not a number", 2, "a.tar/s0"),
        Reason("no image member (looked for png; found txt)", 1, "a.tar/s2"),
    ]
    assert str(found) == (
        "the image has 5000 x 5000 pixels, more than 9 (3, such as a.tar/s5); the label is 'cat', not a number "
        "(2, such as a.tar/s0); no image member (looked for png; found txt) (1, such as a.tar/s2); other reasons (1)"
    )


def test_no_files_are_no_bad_samples(tmp_path: Path) -> None:
    found = summarise(tmp_path / "bad.jsonl", 100)
    assert (found.bad, found.reasons) == (0, [])


@pytest.mark.parametrize("data", [b"[]\n{}\n", b"\xff\xfe\x00\n"])
def test_a_damaged_file_is_one_sentence(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "bad.w.jsonl").write_bytes(data)
    with pytest.raises(DataError, match=r"bad\.w\.jsonl:1 is not a line of a quarantine manifest"):
        summarise(tmp_path / "bad.jsonl", 1)
