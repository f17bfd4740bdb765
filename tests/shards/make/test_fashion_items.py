from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import DataError
from pipeline.shards.index import DatasetIndex
from pipeline.shards.make import make
from pipeline.shards.make._scenes_captions import NOUNS
from pipeline.shards.make.fashion_mnist import CLASSES
from pipeline.shards.samples import shard_samples


def samples(index: DatasetIndex) -> dict[str, dict[str, bytes]]:
    return {
        key: {extension: bytes(data) for extension, data in members.items()}
        for shard in index.shards
        for _, key, members, _ in shard_samples(shard)
    }


def test_each_picture_shows_the_item_that_its_caption_names(items_src: Path, tmp_path: Path) -> None:
    index = make("fashion-items", tmp_path / "one", src=items_src, train=4, val=3, test=5, workers=1)
    assert index.members == {"class_id": ("cls",), "text": ("txt",)}
    assert index.classes == {"class_id": CLASSES}
    found = samples(index)
    assert len(found) == len({members["jpg"] for members in found.values()}) == 12
    for members in found.values():
        before, after = NOUNS[int(members["cls"])].split("{}")
        text = members["txt"].decode()
        assert text.startswith((f"a {before}", f"an {before}"))
        assert text.endswith(after)
        assert " of " not in text.removeprefix("a pair of"), "no second item"
    again = make("fashion-items", tmp_path / "two", src=items_src, train=9, val=3, test=5, workers=1)
    assert samples(again).items() > found.items()


def test_impossible_settings_are_refused(items_src: Path, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"^train 0, val 0, test 0, samples per shard 1000, seed 0: .* one of the items"
    ):
        make("fashion-items", tmp_path, src=items_src, train=0, val=0, test=0)
