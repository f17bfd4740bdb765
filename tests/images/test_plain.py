from __future__ import annotations

import io
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from timm.data.transforms_factory import transforms_imagenet_eval

from pipeline.config.data import WHITE, PlainConfig
from pipeline.images.plain import load_plain, plain, spans

GREEN = (0, 128, 0)
MODES = {"shorter": "center", "squash": "squash", "pad": "border"}


def photo(height: int = 60, width: int = 90) -> np.ndarray:
    return np.random.default_rng(0).integers(256, size=(height, width, 3), dtype=np.uint8)


def smooth(height: int, width: int) -> np.ndarray:
    return cv2.GaussianBlur(photo(height, width), (0, 0), 3)


def of_timm(data: bytes, size: tuple[int, int], how: PlainConfig) -> np.ndarray:
    """The output of timm's transform for an image file, int [height, width, channels]."""
    to_pixels = transforms_imagenet_eval(
        size,
        crop_pct=how.crop_pct,
        crop_mode=MODES[how.resize],
        interpolation=how.interpolation,
        mean=tuple(value / 255 for value in GREEN),
        normalize=False,
    )
    return to_pixels(Image.open(io.BytesIO(data))).permute(1, 2, 0).numpy().astype(int)


def test_at_its_own_size_nothing_changes(encode) -> None:
    for interpolation in ("auto", "nearest", "bicubic"):
        for resize in ("squash", "shorter", "pad"):
            how = PlainConfig(resize=resize, interpolation=interpolation)
            np.testing.assert_array_equal(load_plain(encode(photo()), (60, 90), 3, WHITE, how), photo())


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("resize", list(MODES))
@pytest.mark.parametrize(
    ("full", "size", "crop_pct"),
    [
        ((375, 500), (224, 224), 0.875),
        ((375, 500), (224, 224), 1.0),
        ((501, 333), (224, 224), 0.9),
        ((375, 500), (96, 160), 0.95),  # not square
        ((50, 41), (64, 64), 0.875),  # enlarged
        ((200, 30), (33, 33), 1.0),
    ],
)
def test_pixels_are_those_of_timm(
    encode, full: tuple[int, int], size: tuple[int, int], crop_pct: float, resize: Any, interpolation: Any
) -> None:
    """Equal up to rounding; `nearest` may choose either of two equally near pixels."""
    how = PlainConfig(resize=resize, crop_pct=crop_pct, interpolation=interpolation)
    for data in (encode(smooth(*full), "PNG"), encode(smooth(*full), "JPEG", quality=90)):
        difference = np.abs(load_plain(data, size, 3, GREEN, how) - of_timm(data, size, how))
        if interpolation == "nearest":
            assert (difference > 0).any(axis=2).mean() < 0.1
        else:
            assert difference.max() <= 2
            assert difference.mean() < 0.1


@pytest.mark.parametrize("resize", list(MODES))
@pytest.mark.parametrize("full", [(1200, 1600), (375, 500), (500, 375), (90, 80)])
def test_auto_is_close_to_the_exact_filters(encode, full: tuple[int, int], resize: Any) -> None:
    """Also if the JPEG is decoded at a fraction of its size."""
    data = encode(smooth(*full), "JPEG", quality=95)
    how = PlainConfig(resize=resize, crop_pct=0.875)
    ours = load_plain(data, (112, 112), 3, GREEN, how)
    difference = np.abs(ours - of_timm(data, (112, 112), how.model_copy(update={"interpolation": "bilinear"})))
    assert difference.mean() < 2


@pytest.mark.parametrize("how", [PlainConfig(resize="shorter", crop_pct=0.8), PlainConfig(interpolation="bicubic")])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_decoded_image_is_treated_as_its_file(encode, how: PlainConfig, channels: int) -> None:
    pixels = photo(70, 50)[:, :, :channels]
    data = encode(pixels[:, :, 0] if channels == 1 else pixels)
    np.testing.assert_array_equal(plain(pixels, (32, 32), WHITE, how), load_plain(data, (32, 32), channels, WHITE, how))


@pytest.mark.parametrize("interpolation", ["auto", "bicubic"])
@pytest.mark.parametrize("orientation", [3, 6])
def test_a_turned_jpeg_is_seen_upright(encode, orientation: int, interpolation: Any) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = smooth(120, 180)
    how = PlainConfig(resize="shorter", crop_pct=0.875, interpolation=interpolation)
    stored = encode(image, "JPEG", quality=95)
    turned = {3: cv2.ROTATE_180, 6: cv2.ROTATE_90_CLOCKWISE}[orientation]
    expected = plain(cv2.rotate(load_plain(stored, (120, 180), 3, WHITE), turned), (48, 48), WHITE, how).astype(int)
    ours = load_plain(encode(image, "JPEG", quality=95, exif=exif), (48, 48), 3, WHITE, how)
    assert np.abs(ours - expected).mean() < 1


def test_grey_images_are_padded_with_the_backgrounds_luminance() -> None:
    black = np.zeros((20, 40, 1), np.uint8)
    seen = plain(black, (16, 16), GREEN, PlainConfig(resize="pad"))
    assert seen.shape == (16, 16, 1)
    assert set(np.unique(seen[:4])) == set(np.unique(seen[-4:])) == {75}
    assert not seen[4:-4].any()


@given(
    full=st.tuples(st.integers(1, 500), st.integers(1, 500)),
    size=st.tuples(st.integers(1, 64), st.integers(1, 64)),
    crop_pct=st.floats(0.3, 1.0),
    resize=st.sampled_from(list(MODES)),
    interpolation=st.sampled_from(["auto", "bicubic"]),
)
def test_what_is_seen_lies_in_the_image_and_fills_the_output(
    full: tuple[int, int], size: tuple[int, int], crop_pct: float, resize: Any, interpolation: Any
) -> None:
    how = PlainConfig(resize=resize, crop_pct=crop_pct, interpolation=interpolation)
    for span, side, out in zip(spans(full, size, how), full, size, strict=True):
        assert 0 <= span.start < span.stop <= side
        assert 1 <= span.length <= out
        assert span.first >= 0
        assert span.first + span.length <= out
        assert span.length == out or resize == "pad"
        centre = (span.start + span.stop) / 2 - side / 2
        assert abs(centre) <= max(side / span.length, 1)  # half a pixel of the output, and of the image
    assert plain(np.zeros((*full, 3), np.uint8), size, WHITE, how).shape == (*size, 3)
