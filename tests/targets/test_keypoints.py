from __future__ import annotations

import json
import pickle
from typing import Any

import numpy as np
import pytest

from pipeline.errors import DataError
from pipeline.images.geometry import Geometry, flipped
from pipeline.targets import target_kind
from pipeline.targets.base import BadLabel, ClassMap
from pipeline.targets.keypoints import Keypoints, KeypointsConfig

NAMES = ("nose", "left ear", "right ear")
CLASSES = ClassMap.same(NAMES)
IMAGE = (40, 60)
FIRST = {"bbox": [10, 5, 20, 30], "keypoints": [15, 10, 2, 12, 12, 1, 0, 0, 0], "area": 400, "iscrowd": 0}
SECOND = {"bbox": [40, 10, 15, 15], "keypoints": [45, 15, 2, 42, 12, 2, 50, 12, 2]}
UNSEEN = {"bbox": [1, 1, 5, 5], "keypoints": [0] * 9}


def build(classes: ClassMap | None = CLASSES, **settings: object) -> Keypoints:
    return Keypoints.build(("json",), KeypointsConfig(**settings), classes)


def members(*annotations: dict[str, Any]) -> dict[str, bytes]:
    return {"json": json.dumps({"width": 60, "height": 40, "annotations": annotations}).encode()}


def test_it_is_found_by_its_name_and_travels_to_workers() -> None:
    assert target_kind("keypoints") is Keypoints
    assert pickle.loads(pickle.dumps(build(rotation=10))) == build(rotation=10)


def test_instances_without_a_labelled_keypoint_and_crowds_are_left_out() -> None:
    crowd = {**SECOND, "iscrowd": 1}
    value = build().decode(members(FIRST, UNSEEN, crowd, SECOND, {"bbox": [0, 0, 5, 5]}), IMAGE)
    assert value.points.tolist() == [[[15, 10], [12, 12], [0, 0]], [[45, 15], [42, 12], [50, 12]]]
    assert value.flags.tolist() == [[2, 1, 0], [2, 2, 2]]
    assert value.boxes.tolist() == [[10, 5, 30, 35], [40, 10, 55, 25]]
    assert value.areas.tolist() == [400, 225]
    assert value.left_out == 1
    assert build().summarise({"json": 1}, members(FIRST, UNSEEN)) == {"instances": 1, "left_out": 1, "keypoints": 3}


def test_keypoints_are_the_stages_by_name() -> None:
    """A data set that has them in another order, one that is ignored, and none of one that the stage has."""
    value = build(ClassMap(NAMES, (2, -1, 0), 4)).decode(members(SECOND), IMAGE)
    assert value.points.tolist() == [[[50, 12], [0, 0], [45, 15], [0, 0]]]
    assert value.flags.tolist() == [[2, 0, 2, 0]]
    ignored = build(ClassMap(NAMES, (-1, -1, 0), 1)).decode(members(FIRST, SECOND), IMAGE)
    assert (len(ignored.points), ignored.left_out) == (1, 1)


@pytest.mark.parametrize(
    ("annotation", "error", "reason"),
    [
        (
            {**FIRST, "keypoints": [1, 2, 2] * 4},
            DataError,
            "^has 4 keypoints in annotation 1, but there should be 3; name all keypoints of the data set in `classes`",
        ),
        ({**FIRST, "keypoints": [1, 2, 2, 5]}, BadLabel, r"annotation 1 has keypoints that are not a list \[x, y, v"),
        ({**FIRST, "keypoints": "none"}, BadLabel, "annotation 1 has keypoints that are not a list"),
        ({**FIRST, "keypoints": [1, 2, 3] * 3}, BadLabel, "annotation 1 has a keypoint whose v is not 0, 1 or 2"),
        ({**FIRST, "bbox": [100, 5, 20, 30]}, BadLabel, "outside its image"),
    ],
)
def test_bad_annotations_say_what_is_wrong(annotation: dict[str, Any], error: type[Exception], reason: str) -> None:
    with pytest.raises(error, match=reason):
        build().decode(members(SECOND, annotation), IMAGE)


def test_another_size_than_the_image_is_refused() -> None:
    with pytest.raises(BadLabel, match="the annotations are for 60 x 40 pixels, but their image has 60 x 50"):
        build().decode(members(FIRST), (50, 60))


def test_tools_read_keypoints_that_nobody_names() -> None:
    value = build(None).decode(members(FIRST, SECOND), IMAGE)
    assert value.points.shape == (2, 3, 2)
    assert build(None).decode(members(), IMAGE).points.shape == (0, 0, 2)
    assert Keypoints.known_classes({"keypoints": 3}) == 3
    picture = np.zeros((*IMAGE, 3), np.uint8)
    assert build(None).draw(picture, value, NAMES) == "2 instances"
    assert picture[10, 15].any()
    assert build().count(value) == {0: 2, 1: 2, 2: 1}


def test_training_draws_an_instance_and_frames_it() -> None:
    target, value = build(scale_jitter=0.5, rotation=90), build().decode(members(FIRST, SECOND), IMAGE)
    seen = {tuple(target.pick(value, np.random.default_rng(seed)).boxes[0].tolist()) for seed in range(20)}
    assert seen == {(10, 5, 30, 35), (40, 10, 55, 25)}
    scales, angles = [], []
    for seed in range(50):
        one = target.pick(value, np.random.default_rng(seed))
        frame = target.frame(one, IMAGE, (32, 24), np.random.default_rng(seed + 100))
        left, top, right, bottom = one.boxes[0]
        np.testing.assert_allclose(frame.apply(np.array([[(left + right) / 2, (top + bottom) / 2]])), [[12, 16]])
        scale = np.sqrt(np.linalg.det(frame.matrix[:, :2]))
        scales.append(1 / (1.25 * scale * max((right - left) / 24, (bottom - top) / 32)))
        angles.append(np.degrees(np.arctan2(frame.matrix[1, 0], frame.matrix[0, 0])))
    assert 0.5 <= min(scales) < 0.6 < 1.4 < max(scales) <= 1.5
    assert -90 <= min(angles) < -70 < 70 < max(angles) <= 90


def test_an_image_without_instances_is_seen_whole_and_teaches_nothing() -> None:
    target = build(scale_jitter=0, rotation=0)
    value = target.pick(target.decode(members(UNSEEN), IMAGE), np.random.default_rng(0))
    frame = target.frame(value, IMAGE, (40, 60), np.random.default_rng(0))
    np.testing.assert_allclose(frame.matrix, [[0.8, 0, 6], [0, 0.8, 4]])
    fields = target.fields((40, 60), evaluation=False)
    buffers = {name: np.ones((1, *field.shape), field.dtype) for name, field in fields.items()}
    target.pack(target.transform(value, frame), buffers, 0)
    assert not buffers["keypoints"].any()


def test_keypoints_move_and_those_beyond_the_view_are_not_labelled() -> None:
    target, value = build(), build().decode(members(FIRST), IMAGE)
    moved = target.transform(value, flipped(IMAGE))
    assert moved.points[0, :2].tolist() == [[45, 10], [48, 12]]
    assert moved.mirrored
    assert not target.transform(moved, flipped(IMAGE)).mirrored
    cropped = target.transform(value, Geometry(IMAGE, (20, 20), np.array([[1.0, 0, -13], [0, 1, 0]])))
    assert cropped.flags.tolist() == [[2, 0, 0]]
    fields = target.fields((20, 20), evaluation=False)
    buffers = {name: np.zeros((1, *field.shape), field.dtype) for name, field in fields.items()}
    target.pack(moved, buffers, 0)
    assert buffers["keypoints"].tolist() == [[[45, 10, 2], [48, 12, 1], [60, 0, 0]]]
    assert buffers["mirrored"].tolist() == [True]


def test_evaluation_sees_every_instance() -> None:
    target, value = build(), build().decode(members(FIRST, UNSEEN, SECOND), IMAGE)
    asked: list[Geometry] = []

    def load(frame: Geometry) -> np.ndarray:
        asked.append(frame)
        return np.full((*frame.size, 3), len(asked), np.uint8)

    ragged: dict[str, dict[int, Any]] = {name: {} for name in target.fields((8, 6), evaluation=True)}
    target.pack(target.cut(value, IMAGE, (8, 6), load), ragged, 0)
    assert [frame.source for frame in asked] == [IMAGE, IMAGE]
    assert ragged["instance_views"][0].reshape(2, 3, 8, 6)[:, 0, 0, 0].tolist() == [1, 2]
    assert ragged["instance_keypoints"][0].shape == (2, 3, 3)
    assert ragged["instance_boxes"][0].tolist() == value.boxes.tolist()
    assert ragged["keypoints_size"][0] == IMAGE
    target.pack(target.cut(target.decode(members(), IMAGE), IMAGE, (8, 6), load), ragged, 1)
    assert {name: len(ragged[name][1]) for name in ("instance_views", "instance_keypoints", "instance_boxes")} == {
        "instance_views": 0,
        "instance_keypoints": 0,
        "instance_boxes": 0,
    }
