"""A kind is one file: two new kinds, unlike the existing ones, work from shards to micro-batches and in the tools."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest

import pipeline.targets
from pipeline.config.data import AugmentConfig, DataConfig, DatasetConfig
from pipeline.config.targets import every_kind
from pipeline.config.views import IMAGE
from pipeline.shards.build import build_index
from pipeline.shards.index import DatasetIndex
from pipeline.shards.named_sets import named_set
from pipeline.shards.preview import contact_sheet
from pipeline.shards.stats import dataset_stats
from pipeline.shards.verify import verify_shards
from pipeline.shards.write import TarWriter
from pipeline.stages.data import build_targets
from pipeline.stream.batch import Batch
from pipeline.stream.loader import TrainLoader
from pipeline.stream.source import Source
from pipeline.targets import target_kind
from pipeline.train.job import Dataset
from pipeline.train.micro_batch import split

SIDE = 24


@pytest.fixture
def kinds(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The two kinds in addition to those of the package."""
    monkeypatch.setattr(
        pipeline.targets, "__path__", [*pipeline.targets.__path__, str(Path(__file__).parent / "kinds")]
    )
    every_kind.cache_clear()
    yield ["rectangles", "spoken"]
    every_kind.cache_clear()


@pytest.fixture
def index(kinds: list[str], tmp_path: Path) -> DatasetIndex:
    """Sample i has i mod 3 white boxes on black, and a note; the boxes of s4 and the language of s7 are broken."""
    with TarWriter(tmp_path / "a.tar") as tar:
        for number in range(12):
            image = np.zeros((SIDE, SIDE, 1), np.uint8)
            boxes = [[2 + 10 * i, 3, 8 + 10 * i, 9 + number, i] for i in range(number % 3)]
            for left, top, right, bottom, _ in boxes:
                image[top:bottom, left:right] = 255
            members = {"png": cv2.imencode(".png", image)[1].tobytes(), "boxes.json": json.dumps(boxes).encode()}
            members |= {"note": b"x" * number, "lang": b"de"}
            members |= {"boxes.json": b"["} if number == 4 else {"lang": b"?"} if number == 7 else {}
            tar.write(f"s{number}", members)
        tar.finish()
    return build_index(str(tmp_path), classes={"rectangles": ["left", "right"]}, workers=1)


def batches(index: DatasetIndex, kinds: list[str], count: int) -> Iterator[Batch]:
    config = DatasetConfig(shards="unused")
    targets = build_targets("t", Dataset(config, index), kinds, {})
    source = Source("t", index, config, AugmentConfig(crop="none", flip=True), 1, targets)
    with TrainLoader(
        [source],
        DataConfig(train="t", lanes=2, window=4, loader_workers=0),
        channels=1,
        targets=kinds,
        views=IMAGE,
        seed=0,
        rank=0,
        world_size=1,
        global_batch_size=6,
        size_at=lambda step: (SIDE, SIDE),
    ) as loader:
        yield from islice(loader, count)


def test_boxes_lie_where_they_are_seen_and_are_cut_into_micro_batches(index: DatasetIndex, kinds: list[str]) -> None:
    turned = 0
    for micro in (micro for batch in batches(index, kinds, 8) for micro in split(batch, 4)):
        boxes, offsets = micro.targets["boxes"], micro.targets["boxes.offsets"].tolist()
        assert micro.targets["box_label.offsets"].tolist() == offsets
        texts = micro.targets["note.offsets"].tolist()
        for row, (key, weight) in enumerate(zip(micro.keys, micro.weights.tolist(), strict=True)):
            number, own = int(key.rpartition("s")[2]), slice(*offsets[row : row + 2])
            labels = micro.targets["box_label"][own].tolist()
            if not weight:
                assert (number in (4, 7), labels, micro.targets["language"][row]) == (True, [], -1)
                continue
            assert labels == list(range(number % 3))
            assert micro.targets["note"][slice(*texts[row : row + 2])].tolist() == [ord("x")] * number
            shown = np.zeros((SIDE, SIDE), np.uint8)
            for left, top, right, bottom in boxes[own].int().tolist():
                shown[top:bottom, left:right] = 255
            np.testing.assert_array_equal(micro.views["image"][row, 0], shown)
            turned += bool(labels) and int(boxes[own][0, 0]) != 2
        assert all(first <= second for first, second in pairwise(offsets))
    assert turned > 3, "flipped"


def test_the_tools_know_them(index: DatasetIndex, kinds: list[str], tmp_path: Path) -> None:
    assert index.members == {"rectangles": ("boxes.json",), "spoken": ("note", "lang")}
    counts = {"missing": 0, "bad": 1, "unusable": 1}
    assert index.totals["rectangles"] == {**counts, "boxes": 11, "most": 2}
    found = {(fault.key, fault.message) for fault in verify_shards(str(tmp_path), workers=1) if fault.kind.is_fault}
    assert found == {("s4", "the boxes are no JSON"), ("s7", "no language '?'")}
    stats, _ = dataset_stats(named_set(str(tmp_path)), workers=1)
    assert stats["targets"]["rectangles"]["per_class"] == {"left": 7, "right": 4}
    assert stats["targets"]["spoken"] == {"without": 1}
    contact_sheet(named_set(str(tmp_path)), tmp_path / "sheet.png", count=12)
    assert (cv2.imread(str(tmp_path / "sheet.png")) == (0, 0, 255)).all(axis=2).any(), "a red frame"


def test_a_data_set_names_their_members_and_settings(kinds: list[str]) -> None:
    given = {"rectangles": "b.json", "spoken": {"member": "caption", "language": "l"}}
    config = DatasetConfig(shards="data", targets=given, classes={"rectangles": ["a", "b"]})
    assert {kind: one.members for kind, one in config.targets.given().items()} == {
        "rectangles": ("b.json",),
        "spoken": ("caption", "l"),
    }
    assert config.classes_of("rectangles") == ["a", "b"]
    assert target_kind("spoken").default_members == ("note", "lang")
