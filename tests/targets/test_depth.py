from __future__ import annotations

import pickle

import cv2
import numpy as np
import pytest
from pydantic import ValidationError

from pipeline.errors import DataError
from pipeline.images.geometry import cropped, flipped, warped
from pipeline.targets import target_kind
from pipeline.targets.base import BadLabel
from pipeline.targets.depth import Depth, DepthConfig


def build(**settings: object) -> Depth:
    return Depth.build(("depth.png",), DepthConfig(**settings), None)


def members(steps: object, dtype: type = np.uint16) -> dict[str, memoryview]:
    return {"jpg": memoryview(b""), "depth.png": memoryview(cv2.imencode(".png", np.array(steps, dtype))[1].tobytes())}


def test_it_is_found_by_its_name_and_travels_to_workers() -> None:
    assert target_kind("depth") is Depth
    assert pickle.loads(pickle.dumps(build(scale=0.5))) == build(scale=0.5)


def test_steps_become_metres() -> None:
    value = build().decode(members([[1234, 0, 65535]]), (1, 3))
    assert value.dtype == np.float32
    assert value.tolist() == [pytest.approx([1.234, 0, 65.535])]
    assert build(scale=1 / 256).decode(members([[512]]), (1, 1)).tolist() == [[2.0]]
    with pytest.raises(ValidationError, match="greater than 0"):
        DepthConfig(scale=0)


@pytest.mark.parametrize(
    ("given", "image", "reason"),
    [
        ({"jpg": b""}, (1, 1), r"no depth member \(looked for depth.png; found jpg\)"),
        (members([[1, 2]]), (2, 2), "the depth map has 2 x 1 pixels, but its image 2 x 2"),
        (members([[1, 2]]), (2, 1), "as its EXIF data rotate it"),
        (members([[0, 0]]), (1, 2), "the depth map is 0 everywhere: nothing was measured"),
        ({"depth.png": b"\x93NUMPY"}, (1, 1), "the depth map is not a PNG; write 16-bit grey PNGs"),
        ({"depth.png": bytes(members([[1, 2]])["depth.png"])[:-20]}, (1, 2), "truncated or damaged"),
    ],
)
def test_bad_depth_says_what_is_wrong(given: dict[str, memoryview], image: tuple[int, int], reason: str) -> None:
    with pytest.raises(BadLabel, match=reason):
        build().decode(given, image)


@pytest.mark.parametrize(
    ("given", "what"), [(members([[9]], np.uint8), "with 8 bits"), (members([[[9, 9, 9]]], np.uint8), "in colour")]
)
def test_maps_of_8_bits_are_the_data_sets_fault(given: dict[str, memoryview], what: str) -> None:
    with pytest.raises(DataError, match=rf"^has a depth PNG {what}.*16-bit grey PNGs; write them again.*'uint16'"):
        build().decode(given, (1, 1))


def test_it_moves_with_the_picture_and_nothing_is_interpolated() -> None:
    target = build()
    value = target.decode(members([[1000, 2000, 0], [4000, 5000, 6000]]), (2, 3))
    assert target.transform(value, flipped((2, 3))).tolist() == value[:, ::-1].tolist()
    larger = target.transform(value, cropped((2, 3), (0, 0, 2, 3), (20, 30)))
    assert np.array_equal(larger, value.repeat(10, axis=0).repeat(10, axis=1))
    turned = target.transform(larger, warped((20, 30), cv2.getRotationMatrix2D((15, 10), 20, 1.0)))
    assert set(np.unique(turned)) <= set(np.unique(value)), "0 where nothing is shown"


def test_it_is_packed_as_the_fields_say() -> None:
    target = build()
    value = target.decode(members([[1000, 2000, 3000]]), (1, 3))
    fields = target.fields((1, 3), evaluation=False)
    buffers = {name: np.full((2, *field.shape), field.fill, field.dtype) for name, field in fields.items()}
    target.pack(value, buffers, 1)
    np.testing.assert_allclose(buffers["depth"], [[[0, 0, 0]], [[1, 2, 3]]], rtol=1e-6)
    ragged: dict[str, dict[int, object]] = {name: {} for name in target.fields((1, 3), evaluation=True)}
    target.pack(value, ragged, 0)
    np.testing.assert_allclose(ragged["depth_full"][0], [1, 2, 3], rtol=1e-6)
    assert ragged["depth_full_size"][0] == (1, 3)


def test_it_is_drawn() -> None:
    picture = np.full((1, 3, 3), 100, np.uint8)
    assert build().draw(picture, np.array([[1, 4, 0]], np.float32), []) == "1.00 to 4.00 m"
    assert picture[0, 2].tolist() == [100, 100, 100]
    assert picture[0, 0, 0] > picture[0, 0, 2], "near is red"
    assert picture[0, 1, 2] > picture[0, 1, 0], "far is blue"
