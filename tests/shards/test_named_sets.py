from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.shards.build import build_index
from pipeline.shards.members import Keys
from pipeline.shards.named_sets import named_set, named_sets

CONFIG = """
name: t
datasets:
  train: {{shards: "{folder}", image_key: note, background: [1, 2, 3]}}
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
    build_index(str(folder), targets={"class_id": ("note",)}, workers=1)
    one = named_set(str(folder), image_key="png", targets={"mask": "png"})
    index = one.open()
    assert (one.name, one.pattern, one.keys(index)) == (str(folder), str(folder), Keys(("png",)))
    assert {target.kind: target.members for target in one.targets(index)} == {"class_id": ("note",), "mask": ("png",)}
    assert named_set("s3://bucket/c.yaml/train-*.tar").pattern == "s3://bucket/c.yaml/train-*.tar"


def test_data_sets_of_a_config_bring_their_members(config: str, folder: Path) -> None:
    index = build_index(str(folder), workers=1)
    train, val = named_sets(config)
    assert (train.name, train.pattern, train.keys(index)) == ("train", str(folder), Keys(("note",)))
    assert train.config.background == (1, 2, 3)
    assert (val.name, val.classes(index, ["class_id"])) == ("val", {"class_id": ["a", "b"]})
    again = named_set(f"{config}:train", targets={"class_id": "note"})
    assert (again.keys(index), again.members) == (Keys(("note",)), {"class_id": ("note",)})


def test_wrong_names_are_one_sentence(config: str) -> None:
    with pytest.raises(ConfigError, match=r"found the data sets train, val; choose one with .*c.yaml:NAME"):
        named_set(config)
    with pytest.raises(ConfigError, match=r"c.yaml: found no data set 'vall'; did you mean 'val'"):
        named_sets(f"{config}:vall")
