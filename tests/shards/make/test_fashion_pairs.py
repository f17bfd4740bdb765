from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from pipeline.errors import DataError
from pipeline.shards.index import DatasetIndex
from pipeline.shards.make import make
from pipeline.shards.samples import shard_samples


def pictures(index: DatasetIndex) -> list[tuple[int, bytes]]:
    return [
        (int(bytes(members["cls"])), bytes(members["jpg"]))
        for shard in index.shards
        for _, _, members, _ in shard_samples(shard)
    ]


def test_each_item_has_two_different_pictures(items_src: Path, tmp_path: Path) -> None:
    index = make("fashion-pairs", tmp_path / "one", src=items_src, items=5, workers=1)
    assert index.members == {"class_id": ("cls",)}
    found = pictures(index)
    assert Counter(item for item, _ in found) == dict.fromkeys(range(5), 2)
    assert len({jpeg for _, jpeg in found}) == 10
    more = make("fashion-pairs", tmp_path / "two", src=items_src, items=7, workers=1)
    assert pictures(more)[:10] == found


def test_more_items_than_there_are_are_refused(items_src: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--items 99999: test has \d+ items; ask for at most so many"):
        make("fashion-pairs", tmp_path, src=items_src, items=99_999, workers=1)


def test_impossible_settings_are_refused(items_src: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^test 0, samples per shard 1000, seed 0: .* one of the pictures"):
        make("fashion-pairs", tmp_path, src=items_src, items=0)
