from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from pipeline.config.data import WHITE
from pipeline.images.decode import BadImage, decode, read_header
from pipeline.images.shrink import shrink


def ring(mode: str = "RGBA", side: int = 200) -> Image.Image:
    """A black ring on a transparent ground that is black underneath."""
    down, across = np.indices((side, side)) - side / 2
    alpha = np.abs(np.hypot(down, across) - side / 3) < side / 12
    pixels = np.zeros((side, side, 4), np.uint8)
    pixels[..., 3] = alpha * 255
    return Image.fromarray(pixels).convert(mode)


def saved(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_drawings_stay_transparent(mode: str) -> None:
    data = saved(ring(mode))
    extension, small = shrink(data, 50, 90)
    image = Image.open(io.BytesIO(small))
    assert (extension, image.size, image.mode) == ("png", (50, 50), "RGBA")
    teal = (10, 140, 150)
    for background in (WHITE, teal):
        large, ours = (decode(each, read_header(each), 3, background) for each in (data, small))
        expected = np.array(Image.fromarray(large).resize((50, 50), Image.Resampling.BILINEAR)).astype(int)
        assert np.abs(ours - expected).max() <= 2
        assert tuple(ours[0, 0]) == background
    low, high = image.convert("L").getextrema()
    assert high - low > 200, "a reader that drops alpha sees nothing"


def test_an_alpha_channel_that_hides_nothing_is_no_reason_for_a_png() -> None:
    photo = Image.fromarray(np.random.default_rng(0).integers(256, size=(90, 60, 3), dtype=np.uint8))
    for image in (photo, photo.convert("RGBA")):
        extension, small = shrink(saved(image), 30, 90)
        assert (extension, Image.open(io.BytesIO(small)).size) == ("jpg", (20, 30))


def test_small_images_stay_and_bad_ones_are_bad() -> None:
    data = saved(ring())
    assert shrink(data, 200, 90) is None
    with pytest.raises(BadImage):
        shrink(data[: len(data) // 2], 50, 90)
