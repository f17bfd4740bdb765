from __future__ import annotations

from pipeline.config.data import DatasetConfig
from pipeline.shards.index import DatasetIndex, make_index
from pipeline.shards.scan import ShardRecord
from pipeline.stages.overlap import Overlaps, shared_shards
from pipeline.train.job import Dataset


def index(folder: str, **hashes: str) -> DatasetIndex:
    """Shards of ten samples by name, each with a hash; none in a shard whose name begins with `empty`."""
    records = [
        ShardRecord(f"{name}.tar", 0 if name.startswith("empty") else 10, 1000, digit * 64)
        for name, digit in hashes.items()
    ]
    return make_index(folder, records)


TRAIN = index("data", a="1", b="2", empty="0")


def test_shards_of_equal_content_are_shared_wherever_they_lie() -> None:
    assert shared_shards(TRAIN, index("copy", x="2", y="3")) == ["x.tar"]
    assert shared_shards(TRAIN, index("copy", x="4")) == []


def test_the_same_file_is_shared_whatever_its_index_says() -> None:
    assert shared_shards(TRAIN, index("data", b="9", c="8")) == ["b.tar"]


def test_empty_shards_have_nothing_to_share() -> None:
    assert shared_shards(TRAIN, index("copy", empty="0", empty2="0", full="0")) == []


def datasets(**indexes: DatasetIndex) -> dict[str, Dataset]:
    return {name: Dataset(DatasetConfig(shards=index.url), index) for name, index in indexes.items()}


def test_each_pair_is_reported_once_with_its_stages() -> None:
    overlaps = Overlaps(datasets(train=TRAIN, val=index("val", x="1", y="7"), test=index("test", x="5")))
    for stage in ("one", "two", "two", "three", "four", "five"):
        overlaps.add(stage, ["train"], "val")
    overlaps.add("evaluate", ["train"], "test")
    overlaps.add("evaluate", ["train"], "not there yet")
    [warning] = overlaps.warnings()
    assert warning == (
        "datasets.val: 1 of 2 shards (x.tar) are also in datasets.train, and stages.one, stages.two, stages.three "
        "and 2 more train on one and are evaluated on the other; remove them from one of the two"
    )


def test_training_data_that_is_named_for_validation_is_reported_without_its_index() -> None:
    overlaps = Overlaps({})
    overlaps.add("one", ["train"], "train")
    [warning] = overlaps.warnings()
    assert warning.startswith("datasets.train: stages.one trains on it and is evaluated on it, so the figures ")
