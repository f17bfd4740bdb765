from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.errors import ConfigError, DataError
from pipeline.images.geometry import Geometry, as_matrix, cropped, flipped, placed
from pipeline.shards.build import build_index
from pipeline.shards.named_sets import named_set
from pipeline.shards.preview import contact_sheet
from pipeline.shards.stats import dataset_stats
from pipeline.shards.verify import verify_shards
from pipeline.shards.write import TarWriter
from pipeline.targets import default_members, target_kind
from pipeline.targets._coco import read_annotations
from pipeline.targets.base import BadLabel, ClassMap
from pipeline.targets.boxes import Boxes, BoxesConfig, BoxesTarget

NAMES = ("sky", "cow", "horse", "tree")
CLASSES = ClassMap.same(NAMES)
SIZE = 40, 60  # height, width


def build(classes: ClassMap | None = CLASSES, member: str = "json", **settings: Any) -> BoxesTarget:
    return BoxesTarget.build((member,), BoxesConfig(**settings), classes)


def annotation(*box: float, category: int = 1, **more: Any) -> dict[str, Any]:
    return {"bbox": list(box), "category_id": category, **more}


def coco(*annotations: Any, **more: Any) -> dict[str, bytes]:
    return {"jpg": b"", "json": json.dumps({"annotations": list(annotations), **more}).encode()}


def boxes_of(*corners: tuple[float, float, float, float], crowds: tuple[int, ...] = ()) -> Boxes:
    array = np.array(corners, np.float64).reshape(-1, 4)
    crowd = np.isin(np.arange(len(array)), crowds)
    return Boxes(array, np.arange(len(array)), (array[:, 2:] - array[:, :2]).prod(axis=1), crowd, SIZE)


def test_cocos_annotations_become_corners_and_the_stages_classes() -> None:
    target = build(ClassMap(NAMES, (-1, 1, 0, -1), 2))
    found = target.decode(
        coco(
            annotation(1, 2, 3, 4, category=2),
            annotation(0, 0, 9, 9, category=0),
            annotation(5, 5, 6, 7, category=1, area=20.5, iscrowd=1),
        ),
        SIZE,
    )
    assert found.corners.tolist() == [[1, 2, 4, 6], [5, 5, 11, 12]]
    assert (found.labels.tolist(), found.areas.tolist(), found.crowds.tolist()) == ([0, 1], [12, 20.5], [False, True])
    assert pickle.loads(pickle.dumps(target)) == target
    assert target_kind("boxes") is BoxesTarget


def test_a_category_goes_by_its_name_or_by_ids_that_may_have_holes() -> None:
    target = build(ids=[1, 7, 13, 90])
    members = coco(annotation(0, 0, 1, 1, category=90), {"bbox": [0, 0, 1, 1], "category": " horse"})
    assert target.decode(members, SIZE).labels.tolist() == [3, 2]
    assert target.inputs()["ids"] == [1, 7, 13, 90]
    assert "ids" not in build().inputs()
    with pytest.raises(ConfigError, match=r"^boxes.ids: found 2 ids for 4 classes; give the id of each class"):
        build(ids=[1, 2])
    with pytest.raises(ValidationError, match="the id 3 once, as each class has its own id"):
        BoxesConfig(ids=[3, 4, 3])


@pytest.mark.parametrize(("member", "content"), [("json", b'{"annotations": []}'), ("json", b"[]"), ("txt", b"\n")])
def test_an_image_without_boxes_is_a_good_one(member: str, content: bytes) -> None:
    found = build(member=member).decode({member: content}, SIZE)
    assert found.corners.shape == (0, 4)
    assert build(member=member).summarise({member: 9}, {member: content}) == {
        "boxes": 0,
        "crowds": 0,
        "empty": 1,
        "most": 0,
    }
    fields = build().fields(SIZE, evaluation=False)
    ragged: dict[str, dict[int, np.ndarray]] = {name: {} for name in fields}
    build().pack(build().transform(found, flipped(SIZE)), ragged, 0)
    assert ragged["boxes"][0].shape == (0, 4)


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"jpg": b""}, r"no boxes member \(looked for json; found jpg\)"),
        ({"json": b"{"}, "the member json is not valid JSON"),
        ({"json": b'{"a": 1}'}, r"the member json has no list 'annotations' \(found a\)"),
        ({"json": b"3"}, r"the member json has no list 'annotations' \(found no fields\)"),
        (coco(5), "annotation 0 is 5, not an object with a bbox"),
        (coco({"category_id": 1}), r"annotation 0 has the bbox null, not four numbers \[x, y, width, height\]"),
        (coco(annotation(1, 2, 3)), r"annotation 0 has the bbox \[1, 2, 3\], not four .*"),
        (coco(annotation(1, 2, 3, float("nan"))), r"annotation 0 has the bbox \[1, 2, 3, NaN\], not four .*"),
        (coco(annotation(0, 0, 1, 1), annotation(8, 8, -2, 3)), r"annotation 1 has the inverted bbox .*"),
        (coco(annotation(8, 8, 0, 3)), r"annotation 0 has the bbox \[8, 8, 0, 3\], which has no area"),
        (coco(annotation(60, 8, 5, 3)), r"annotation 0 has a box from \(60, 8\) to \(65, 11\), outside its image of 60"
         " x 40 pixels"),
        (coco({"bbox": [1, 1, 1, 1]}), "annotation 0 has no category_id"),
        (coco(annotation(1, 1, 1, 1, category="cow")), 'annotation 0 has the category_id "cow", not a whole number'),  # type: ignore[arg-type]
        (coco(annotation(1, 1, 1, 1, iscrowd="no")), 'annotation 0 has the iscrowd "no", not a number from 0 up'),
        (coco(annotation(1, 1, 1, 1, area=-1)), "annotation 0 has the area -1, not a number from 0 up"),
        (coco(width=60, height=41), "the annotations are for 60 x 41 pixels, but their image has 60 x 40"),
        (coco(width=40, height=60), ".*; boxes are for the image as its EXIF data rotate it"),
    ],
)  # fmt: skip
def test_bad_annotations_say_what_is_wrong(members: dict[str, bytes], reason: str) -> None:
    with pytest.raises(BadLabel, match=f"^{reason}$"):
        build().decode(members, SIZE)


def test_an_unknown_category_is_the_data_sets_fault() -> None:
    with pytest.raises(DataError, match=r"^has the category id 4 in its boxes, but the 4 classes have the ids 0, 1, 2"):
        build().decode(coco(annotation(1, 1, 1, 1, category=4)), SIZE)
    with pytest.raises(DataError, match=r"^has the category 'cat' in its boxes"):
        build().decode(coco(annotation(1, 1, 1, 1) | {"category": "cat"}), SIZE)
    assert build(None).decode(coco(annotation(1, 1, 1, 1, category=90)), SIZE).labels.tolist() == [90]


def test_what_reaches_beyond_the_image_is_cut_and_hundreds_are_kept() -> None:
    many = [annotation(-3, 30, 50 + i, 30) for i in range(700)]
    found = read_annotations(coco(*many)["json"], "json", SIZE)
    assert found.boxes.shape == (700, 4)
    assert found.boxes[0].tolist() == [0, 30, 47, 40]
    assert found.boxes[-1].tolist() == [0, 30, 60, 40]
    assert found.raw[3]["bbox"] == [-3, 30, 53, 30]


def test_yolos_lines_are_shares_of_the_image() -> None:
    target = build(member="txt")
    found = target.decode({"txt": b"1 0.5 0.5 0.5 0.25\n\n3 0 0 0.1 0.1\n"}, SIZE)
    assert found.labels.tolist() == [1, 3]
    np.testing.assert_allclose(found.corners, [[15, 15, 45, 25], [0, 0, 3, 2]], atol=1e-9)
    for line, reason in {
        "1 .5 .5 .5": "line 1 is '1 .5 .5 .5', not 'class x y width height'",
        "cow .5 .5 .5 .5": "line 1 is 'cow .5 .5 .5 .5', not 'class x y width height'",
        "1.5 .5 .5 .5 .5": "line 1 is '1.5 .5 .5 .5 .5', not 'class x y width height'",
        "1 .5 .5 -.5 .5": "line 1 has the inverted box .*",
        "1 .5 .5 0 .5": "line 1 has the box .*, which has no area",
        "1 30 20 5 5": "line 1 has the box .*, outside its image; give shares of its sides, 0 to 1",
    }.items():
        with pytest.raises(BadLabel, match=f"^{reason}$"):
            target.decode({"txt": line.encode()}, SIZE)


def test_groups_say_what_classes_mean_as_of_masks() -> None:
    assert BoxesConfig(groups={"animal": ["cow", "horse"]}).meanings(NAMES) == [None, "animal", "animal", None]


def test_boxes_move_with_the_picture_and_those_hardly_seen_are_left_out() -> None:
    target = build(min_visible=0.5)
    value = boxes_of((10, 10, 20, 20), (0, 0, 10, 40), (26, 0, 46, 40), (0, 0, 60, 40), crowds=(3,))
    crop = cropped(SIZE, (0, 5, 40, 30), (80, 60))  # columns 5 to 35, twice as large
    moved = target.transform(value, crop)
    assert moved.corners.tolist() == [[10, 20, 30, 40], [0, 0, 10, 80], [0, 0, 60, 80]]
    assert build(min_visible=0.45).transform(value, crop).labels.tolist() == [0, 1, 2, 3]
    assert moved.labels.tolist() == [0, 1, 3]
    assert moved.size == (80, 60)
    assert moved.areas.tolist() == [100, 200, 1200]
    buffers: dict[str, dict[int, np.ndarray]] = {name: {} for name in target.fields((80, 60), evaluation=False)}
    target.pack(moved, buffers, 0)
    assert buffers["box_label"][0].tolist() == [0, 1], "a crowd is nothing to learn from"
    fields = target.fields(SIZE, evaluation=True)
    buffers = {name: {} for name in fields}
    target.pack(value, buffers, 2)
    assert buffers["box_crowd"][2].tolist() == [False, False, False, True]
    assert buffers["boxes_full_size"][2] == SIZE
    assert all(fields[name].ragged for name in ("boxes_full", "box_label", "box_area", "box_crowd"))


def test_what_an_earlier_step_cut_off_does_not_come_back() -> None:
    out = cropped(SIZE, (0, 20, 40, 40), (40, 40)).then(placed((40, 40), 0, 10, (40, 60)))
    moved = build(min_visible=0).transform(boxes_of((0, 0, 40, 40)), out)
    assert moved.corners.tolist() == [[10, 0, 30, 40]]


@given(
    corner=st.tuples(*[st.integers(0, 30)] * 2),
    sides=st.tuples(*[st.integers(2, 25)] * 2),
    angle=st.sampled_from([-0.9, -0.4, -0.2, 0.0, 0.2, 0.5, 1.0, np.pi / 2]),
    scale=st.floats(0.5, 1.5),
)
def test_boxes_lie_around_what_is_drawn_in_them(
    corner: tuple[int, int], sides: tuple[int, int], angle: float, scale: float
) -> None:
    """Whatever the geometry, turned ones among them; the picture is drawn at eight times its size, to see tips."""
    (left, top), (width, height) = corner, sides
    a, b = scale * np.cos(angle), scale * np.sin(angle)
    matrix = as_matrix([[a, -b, 8], [b, a, -6]])
    mask = np.zeros(SIZE, np.uint8)
    mask[top : top + height, left : left + width] = 1
    rows, columns = np.nonzero(Geometry(SIZE, (400, 400), 8 * matrix).warp_mask(mask, 0))
    box = boxes_of((left, top, min(left + width, SIZE[1]), min(top + height, SIZE[0])))
    moved = build(min_visible=0).transform(box, Geometry(SIZE, (50, 50), matrix))
    if len(rows) > 16 and len(moved.corners):
        seen = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / 8
        assert np.abs(moved.corners[0] - seen).max() <= 1.0
    else:
        assert len(rows) <= 16


def test_the_tools_know_boxes(tmp_path: Path) -> None:
    annotations = {
        "a": coco(annotation(1, 1, 20, 20), annotation(5, 5, 30, 9, category=2), annotation(0, 0, 9, 9, iscrowd=1)),
        "b": coco(),
        "c": coco(annotation(70, 1, 9, 9)),
        "d": coco(annotation(1, 1, -1, 2)),
    }
    with TarWriter(tmp_path / "a.tar") as tar:
        for level, (key, members) in enumerate(annotations.items()):
            image = cv2.imencode(".png", np.full((*SIZE, 3), level, np.uint8))[1].tobytes()
            tar.write(key, {"png": image, "json": members["json"]})
        tar.finish()
    assert default_members({"png", "json"}) == {}, "a JSON member may hold anything"
    index = build_index(str(tmp_path), targets={"boxes": ("json",)}, classes={"boxes": list(NAMES)}, workers=1)
    counts = {"missing": 0, "bad": 1, "unusable": 1}
    assert index.totals["boxes"] == {**counts, "boxes": 3, "crowds": 1, "empty": 1, "most": 3}
    found = {fault.key: fault.message for fault in verify_shards(str(tmp_path), workers=1) if fault.kind.is_fault}
    assert sorted(found) == ["c", "d"]
    assert "outside its image of 60 x 40 pixels" in found["c"]
    stats, _ = dataset_stats(named_set(str(tmp_path)), workers=1)
    assert stats["targets"]["boxes"]["per_class"] == {"cow": 1, "horse": 1}, "that outside its image is none"
    contact_sheet(named_set(str(tmp_path)), tmp_path / "sheet.png", count=4)
    sheet = cv2.imread(str(tmp_path / "sheet.png"))
    target, picture = build(), np.zeros((*SIZE, 3), np.uint8)
    assert target.draw(picture, target.decode(annotations["a"], SIZE), NAMES) == "1 cow, 1 horse"
    assert target.draw(picture, target.decode(annotations["b"], SIZE), NAMES) == "no boxes"
    assert (sheet == picture[5, 5, ::-1]).all(axis=2).any(), "outlined in the colour of its class"
