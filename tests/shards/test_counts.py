from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import DataError
from pipeline.shards.counts import read_counts
from pipeline.shards.store import list_sizes

NAMES = ["a.tar", "b.tar"]


def by_img2dataset(folder: Path, counts: dict[str, int]) -> None:
    for name, number in counts.items():
        (folder / f"{Path(name).stem}_stats.json").write_text(json.dumps({"count": 100, "successes": number}))


def by_wids(folder: Path, counts: dict[str, int]) -> None:
    """As `widsindex create` of webdataset 0.2.111 does; later versions of the package do not contain wids."""
    about = {"md5sum": "e9efa4c82dec7ae55bc1b40582bb13f1", "filesize": 40960}
    shards = [{"url": f"s3://elsewhere/{name}", "nsamples": number} | about for name, number in counts.items()]
    index = {"__kind__": "wids-shard-index-v1", "wids_version": 1, "shardlist": shards, "name": "train"}
    (folder / "about.json").write_text('{"title": "shards"}')
    (folder / "shardindex.json").write_text(json.dumps(index, indent=2))


def by_energon(folder: Path, counts: dict[str, int]) -> None:
    (folder / ".nv-meta").mkdir()
    (folder / ".nv-meta" / ".info.json").write_text(json.dumps({"energon_version": "7.4.0", "shard_counts": counts}))


def by_older_energon(folder: Path, counts: dict[str, int]) -> None:
    (folder / ".nv-meta").mkdir()
    rows = "".join(f"  {name}: {number}\n" for name, number in counts.items())
    (folder / ".nv-meta" / ".info.yaml").write_text(f"energon_version: 6.0.0\nshard_counts:\n{rows}")


WRITERS = [by_img2dataset, by_wids, by_energon, by_older_energon]


def read(folder: Path) -> dict[str, int]:
    return read_counts(str(folder), NAMES, list_sizes(str(folder)))


@pytest.mark.parametrize("write", WRITERS)
def test_each_tool_s_counts_are_found(write: Callable[[Path, dict[str, int]], None], tmp_path: Path) -> None:
    write(tmp_path, {"a.tar": 5, "b.tar": 0, "another.tar": 7})
    assert read(tmp_path) == {"a.tar": 5, "b.tar": 0}


@pytest.mark.parametrize("write", WRITERS)
def test_a_count_that_is_missing_or_none_is_refused(
    write: Callable[[Path, dict[str, int]], None], tmp_path: Path
) -> None:
    write(tmp_path, {"a.tar": 5})
    with pytest.raises(DataError, match=r"has no count of b\.tar"):
        read(tmp_path)


def test_what_holds_no_counts_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found no counts of its shards"):
        read(tmp_path)
    by_img2dataset(tmp_path, {"a.tar": 5, "b.tar": -1})
    with pytest.raises(DataError, match=r"_stats\.json: found -1 as the count of b\.tar"):
        read(tmp_path)
    (tmp_path / "b_stats.json").write_text('{"count": 3}')
    with pytest.raises(DataError, match=r"b_stats\.json: found no counts of samples in it"):
        read(tmp_path)
