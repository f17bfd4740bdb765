from __future__ import annotations

import cv2
import numpy as np
import pytest

from pipeline.stream.three_augment import three_augment

PHOTO = cv2.GaussianBlur(np.random.default_rng(0).integers(256, size=(40, 60, 3), dtype=np.uint8), (5, 5), 1)


def kind(image: np.ndarray) -> str:
    if (image == image[:, :, :1]).all():
        return "grey"
    if np.array_equal(image, np.where(PHOTO >= 128, 255 - PHOTO, PHOTO)):
        return "solarised"
    assert np.abs(np.diff(image.astype(int), axis=1)).mean() <= np.abs(np.diff(PHOTO.astype(int), axis=1)).mean()
    return "blurred"


def test_each_of_the_three_a_third_of_the_time() -> None:
    kinds = [kind(three_augment(PHOTO, np.random.default_rng(seed))) for seed in range(300)]
    assert all(75 < kinds.count(name) < 125 for name in ("grey", "solarised", "blurred"))


@pytest.mark.parametrize("channels", [1, 3])
def test_shape_type_and_key(channels: int) -> None:
    image = np.ascontiguousarray(PHOTO[:, :, :channels])
    for seed in range(10):
        once, again = (three_augment(image, np.random.default_rng(seed)) for _ in range(2))
        assert (once.shape, once.dtype) == (image.shape, np.uint8)
        np.testing.assert_array_equal(once, again)
