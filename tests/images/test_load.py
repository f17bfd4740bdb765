from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from pipeline.config.data import WHITE
from pipeline.images.decode import read_header
from pipeline.images.load import Box, load_box, resize


def photo(height: int = 60, width: int = 90) -> np.ndarray:
    return np.random.default_rng(0).integers(256, size=(height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_box_of_a_turned_jpeg_is_that_of_the_upright_image(encode, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    smooth = cv2.GaussianBlur(photo(120, 180), (0, 0), 6)
    data = encode(smooth, "JPEG", quality=95, exif=exif)
    seen = np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    header = read_header(data)
    assert seen.shape[:2] == (header.height, header.width)
    box = Box(15, 30, 60, 48)
    for size in ((60, 48), (20, 16), (30, 12)):  # as it is, decoded at half the size, of another aspect ratio
        expected = resize(np.ascontiguousarray(seen[15:75, 30:78]), size).astype(int)
        ours = load_box(data, header, box, size, 3, WHITE, exact=True)
        assert ours.shape == (*size, 3)
        assert np.abs(ours - expected).mean() < 3


def test_shrinking_averages_and_does_not_alias() -> None:
    checkers = (np.indices((90, 90)).sum(axis=0) % 2 * 255).astype(np.uint8)[:, :, None]
    for image in (checkers, np.repeat(checkers, 3, axis=2)):
        small = resize(image, (30, 20))
        assert small.shape == (30, 20, image.shape[2])
        assert np.abs(small[2:-2, 2:-2].astype(int) - 128).max() <= 16
