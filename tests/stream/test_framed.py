"""Keypoints from shards to batches match the images; evaluation sees each instance once."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.config.data import SQUASH, AugmentConfig, DataConfig, DatasetConfig, RandAugmentConfig
from pipeline.config.views import IMAGE
from pipeline.shards.build import build_index
from pipeline.shards.write import TarWriter
from pipeline.stream.loader import EvalLoader, TrainLoader
from pipeline.stream.source import Source
from pipeline.targets.base import ClassMap
from pipeline.targets.keypoints import Keypoints, KeypointsConfig

COLOURS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)  # of the keypoints
NAMES = ("red", "green", "blue")
SIZE = (64, 48)


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """Sample i has i mod 4 instances, of three keypoints each: discs of their colours on grey."""
    rng = np.random.default_rng(0)
    with TarWriter(tmp_path / "a.tar") as tar:
        for number in range(12):
            height, width = 200 + 10 * number, 300
            image, annotations = np.full((height, width, 3), 90, np.uint8), []
            for place in range(number % 4):
                x, y, side = 10 + 95 * place, 20 + 5 * number, 80
                points = rng.permutation([[x + 15, y + 15], [x + 65, y + 20], [x + 40, y + 62]]) + 0.5
                for (px, py), colour in zip(points, COLOURS, strict=True):
                    cv2.circle(image, (int(px), int(py)), 9, colour.tolist(), cv2.FILLED)
                flat = [value for px, py in points.tolist() for value in (px, py, 2)]
                annotations.append({"bbox": [x, y, side, side], "keypoints": flat})
            members = {"jpg": cv2.imencode(".jpg", image[..., ::-1])[1].tobytes()}
            members["json"] = json.dumps({"annotations": annotations}).encode()
            tar.write(f"s{number}", members)
        tar.finish()
    index = build_index(str(tmp_path), classes={"keypoints": list(NAMES)}, targets={"keypoints": ("json",)}, workers=1)
    assert index.totals["keypoints"]["instances"] == 18
    target = Keypoints.build(("json",), KeypointsConfig(), ClassMap.same(NAMES))
    augment = AugmentConfig(flip=True, rand_augment=RandAugmentConfig(ops=1, magnitude=3))
    return Source("t", index, DatasetConfig(shards="unused"), augment, 1, {"keypoints": target})


def is_colour(pixels: np.ndarray, place: int) -> bool:
    """Whether a keypoint's colour is the strongest of a pixel."""
    return int(pixels.argmax()) == place and int(np.ptp(pixels.astype(int))) > 40


def test_training_frames_one_instance_and_its_keypoints_lie_on_their_colours(source: Source) -> None:
    plain = Source(source.name, source.index, source.config, AugmentConfig(flip=True), 1, source.targets)
    seen, mirrored, instances = 0, 0, set()
    with TrainLoader(
        [plain],
        DataConfig(train="t", lanes=2, window=4, loader_workers=0),
        channels=3,
        targets=["keypoints"],
        views=IMAGE,
        seed=0,
        rank=0,
        world_size=1,
        global_batch_size=6,
        size_at=lambda step: SIZE,
    ) as loader:
        for batch in islice(loader, 10):
            assert batch.weights.all(), "an image without instances is no fault"
            for row, keypoints in enumerate(batch.targets["keypoints"].numpy()):
                image = batch.views["image"][row].permute(1, 2, 0).numpy()
                empty = int(batch.keys[row].rpartition("s")[2]) % 4 == 0
                assert empty != bool(keypoints[:, 2].any())
                mirrored += bool(batch.targets["mirrored"][row])
                for place, (x, y, flag) in enumerate(keypoints):
                    if flag:
                        seen += 1
                        assert is_colour(image[int(y), int(x)], place)
                instances.add((batch.keys[row], tuple(keypoints[:, 0] > SIZE[1] / 2)))
    assert seen > 100
    assert 15 < mirrored < 45


def test_what_a_slot_shows_is_drawn_by_the_slot_alone(source: Source) -> None:
    found = []
    for ranks in (1, 2):
        rows = {}
        for rank in range(ranks):
            with TrainLoader(
                [source],
                DataConfig(train="t", lanes=2, window=4, loader_workers=0),
                channels=3,
                targets=["keypoints"],
                views=IMAGE,
                seed=5,
                rank=rank,
                world_size=ranks,
                global_batch_size=6,
                size_at=lambda step: SIZE,
            ) as loader:
                for batch in islice(loader, 3):
                    for row, slot in enumerate(batch.slots.tolist()):
                        rows[slot] = batch.views["image"][row].numpy(), batch.targets["keypoints"][row].numpy()
        found.append(rows)
    assert found[0].keys() == found[1].keys() == set(range(18))
    for slot, (image, keypoints) in found[0].items():
        assert np.array_equal(image, found[1][slot][0])
        assert np.array_equal(keypoints, found[1][slot][1])


@pytest.mark.parametrize("world_size", [1, 3])
def test_evaluation_sees_each_instance_once(source: Source, world_size: int) -> None:
    boxes = []
    for rank in range(world_size):
        loader = EvalLoader(
            source,
            channels=3,
            targets=["keypoints"],
            views=IMAGE,
            size=SIZE,
            plain=SQUASH,
            rank=rank,
            world_size=world_size,
            batch_size=5,
            loader_workers=0,
        )
        for batch in loader:
            views = batch.targets["instance_views"].view(-1, 3, *SIZE)
            offsets = batch.targets["instance_boxes.offsets"].tolist()
            assert len(views) == offsets[-1] == len(batch.targets["instance_keypoints"])
            for row, slot in enumerate(batch.slots.tolist()):
                for place in range(offsets[row], offsets[row + 1]):
                    box = batch.targets["instance_boxes"][place].numpy()
                    boxes.append((slot, *box.tolist()))
                    middle = (box[:2] + box[2:]) / 2
                    scale = min(SIZE[0] / 80, SIZE[1] / 80) / 1.25
                    for keypoint, (x, y, _) in enumerate(batch.targets["instance_keypoints"][place].tolist()):
                        at = (np.array([x, y]) - middle) * scale + [SIZE[1] / 2, SIZE[0] / 2]
                        assert is_colour(views[place, :, int(at[1]), int(at[0])].numpy(), keypoint)
    assert len(boxes) == len(set(boxes)) == 18
    assert {slot: sum(slot == one[0] for one in boxes) for slot in range(12)} == {slot: slot % 4 for slot in range(12)}
