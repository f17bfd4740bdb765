from __future__ import annotations

import pickle

import cv2
import numpy as np
import pytest
from pydantic import ValidationError

from pipeline.errors import ConfigError, DataError
from pipeline.images.geometry import flipped
from pipeline.targets import target_kind
from pipeline.targets.base import BadLabel, ClassMap
from pipeline.targets.mask import Mask, MaskConfig

NAMES = ("sky", "grass", "cow", "horse")
CLASSES = ClassMap.same(NAMES)
GROUPS = {"animal": ["horse", "cow"], "ground": ["grass"]}


def build(classes: ClassMap | None = CLASSES, **settings: object) -> Mask:
    return Mask.build(("seg.png",), MaskConfig(**settings), classes)


def members(ids: list[list[int]] | np.ndarray, dtype: type = np.uint8) -> dict[str, memoryview]:
    return {"jpg": memoryview(b""), "seg.png": memoryview(cv2.imencode(".png", np.array(ids, dtype))[1].tobytes())}


def test_it_is_found_by_its_name_and_travels_to_workers() -> None:
    assert target_kind("mask") is Mask
    target = build()
    target.decode(members([[0]]), (1, 1))
    assert pickle.loads(pickle.dumps(target)) == target


def test_ids_become_the_stages_classes_and_ignored_ones_minus_one() -> None:
    target = build(ClassMap(NAMES, (-1, 1, 0, 0), 2))
    value = target.decode(members([[0, 1, 2], [3, 255, 1]]), (2, 3))
    assert value.dtype == np.int8
    assert value.tolist() == [[-1, 1, 0], [0, -1, 1]]


@pytest.mark.parametrize("outside", [4, 127, 128, 254])
def test_no_id_slips_through(outside: int) -> None:
    for classes in (CLASSES, ClassMap(NAMES, (1, 0, 2, 3), 4)):
        assert build(classes).decode(members([[2, 3, 255]]), (1, 3)).tolist() == [[2, 3, -1]]
        with pytest.raises(DataError, match=f"class ids {outside} in its mask, but"):
            build(classes).decode(members([[0, 3, outside, 255]]), (1, 4))


def test_many_classes_take_two_bytes() -> None:
    names = tuple(map(str, range(300)))
    target = build(ClassMap.same(names), ignore=65535)
    value = target.decode(members([[299, 65535, 128]], np.uint16), (1, 3))
    assert value.dtype == np.int16
    assert value.tolist() == [[299, -1, 128]]
    assert target.fields((4, 6), evaluation=False)["mask"].dtype == "int16"


def test_tools_read_masks_whose_classes_nobody_names() -> None:
    assert build(None).decode(members([[7, 254, 255]]), (1, 3)).tolist() == [[7, 254, -1]]


@pytest.mark.parametrize(
    ("given", "image", "reason"),
    [
        ({"jpg": b"", "cls": b"3"}, (1, 1), r"no mask member \(looked for seg.png; found jpg, cls\)"),
        (members([[0, 1]]), (2, 2), "the mask has 2 x 1 pixels, but its image 2 x 2"),
        (members([[0, 1]]), (2, 1), "as its EXIF data rotate it"),
        (members(np.zeros((2, 2, 3))), (2, 2), "is RGB, not palette indices or grey"),
        ({"seg.png": b"\xff\xd8\xff"}, (1, 1), "a JPEG, which blurs ids"),
    ],
)
def test_bad_masks_say_what_is_wrong(given: dict[str, memoryview], image: tuple[int, int], reason: str) -> None:
    with pytest.raises(BadLabel, match=reason):
        build().decode(given, image)


def test_ids_outside_the_classes_are_the_data_sets_fault() -> None:
    with pytest.raises(DataError, match=r"^has the class ids 4, 9 in its mask, but ids must be 0 to 3, or 255 where"):
        build().decode(members([[0, 9, 9, 4]]), (1, 4))


def test_it_moves_with_the_picture_and_is_packed_as_the_fields_say() -> None:
    target = build()
    value = target.transform(target.decode(members([[0, 1, 255]]), (1, 3)), flipped((1, 3)))
    assert value.tolist() == [[-1, 1, 0]]
    fields = target.fields((1, 3), evaluation=False)
    buffers = {name: np.full((2, *field.shape), field.fill, field.dtype) for name, field in fields.items()}
    target.pack(value, buffers, 1)
    assert buffers["mask"].tolist() == [[[-1, -1, -1]], [[-1, 1, 0]]]
    fields = target.fields((1, 3), evaluation=True)
    ragged: dict[str, dict[int, object]] = {name: {} for name in fields}
    target.pack(value, ragged, 0)
    assert fields["mask_full"].ragged
    assert np.array_equal(ragged["mask_full"][0], [-1, 1, 0])
    assert ragged["mask_full_size"][0] == (1, 3)


def test_groups_say_what_classes_mean() -> None:
    assert MaskConfig(groups=GROUPS).meanings(NAMES) == [None, "ground", "animal", "animal"]
    assert MaskConfig().meanings(NAMES) == list(NAMES)
    with pytest.raises(ConfigError, match=r"groups.animal: 'cowl' is not a class; .*cow"):
        MaskConfig(groups={"animal": ["cowl"]}).meanings(NAMES)
    with pytest.raises(ValidationError, match="'cow' is in 'animal' and in 'meat'; take it out of one"):
        MaskConfig(groups=GROUPS | {"meat": ["cow"]})


def test_an_ignored_class_is_refused() -> None:
    with pytest.raises(ConfigError, match="found 2, which is class 'cow' of 4"):
        build(ignore=2)


def test_pixels_are_counted_and_drawn() -> None:
    target = build()
    value = np.array([[0, 3], [3, -1]], np.int8)
    assert target.count(value) == {0: 1, 3: 2}
    picture = np.full((2, 2, 3), 100, np.uint8)
    assert target.draw(picture, value, NAMES) == "horse, sky"
    assert (picture[0, 0] != picture[0, 1]).any()
    assert target.draw(picture, np.full((2, 2), -1, np.int8), NAMES) == "all ignored"
