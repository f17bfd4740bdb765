from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.shards.build import build_index
from pipeline.shards.members import Keys
from pipeline.shards.named import NamedSet, named_set, named_sets

CONFIG = """
name: t
datasets:
  train: {{shards: "{folder}", image_key: txt, background: [1, 2, 3]}}
  val: {{shards: "{folder}", classes: [a, b]}}
stages:
  pretrain:
    type: pretrain
    model: {{variant: nano, image_size: 28}}
    data: {{train: train, val: val}}
    duration: 1 steps
    global_batch_size: 8
"""


@pytest.fixture
def config(folder: Path) -> str:
    (folder / "c.yaml").write_text(CONFIG.format(folder=folder))
    return str(folder / "c.yaml")


def test_a_pattern_is_itself(folder: Path) -> None:
    build_index(str(folder), label_key="txt", workers=1)
    one = named_set(str(folder), image_key="png")
    assert one == NamedSet(str(folder), str(folder), "png")
    assert one.open()[1] == Keys(("png",), "txt")
    assert named_set("s3://bucket/c.yaml/train-*.tar").pattern == "s3://bucket/c.yaml/train-*.tar"


def test_data_sets_of_a_config_bring_their_keys(config: str, folder: Path) -> None:
    train, val = named_sets(config)
    assert (train.name, train.pattern, train.image_key, train.background) == ("train", str(folder), "txt", (1, 2, 3))
    assert (val.name, val.classes) == ("val", ["a", "b"])
    assert named_set(f"{config}:train", label_key="txt") == NamedSet(
        "train", str(folder), "txt", "txt", None, (1, 2, 3)
    )


def test_wrong_names_are_one_sentence(config: str) -> None:
    with pytest.raises(ConfigError, match=r"has the data sets train, val; name one: .*c.yaml:NAME"):
        named_set(config)
    with pytest.raises(ConfigError, match=r"c.yaml: has no data set 'vall'; did you mean 'val'"):
        named_sets(f"{config}:vall")
