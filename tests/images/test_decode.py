from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
import simplejpeg
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.config.data import WHITE
from pipeline.images.decode import (
    BadImage,
    any_header,
    decode,
    decode_jpeg,
    plain_jpeg_header,
    plain_png_header,
    read_header,
)

RAMP = np.add.outer(np.arange(40) * 3, np.arange(60) * 2).astype(np.uint8)
PHOTO = np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1]], axis=2)
TALL = np.random.default_rng(0).integers(256, size=(300, 60, 3), dtype=np.uint8)


def load(data: bytes, channels: int = 3) -> np.ndarray:
    return decode(data, read_header(data), channels, WHITE)


@pytest.mark.parametrize(("format", "options"), [("PNG", {}), ("WEBP", {"lossless": True}), ("BMP", {}), ("TIFF", {})])
def test_lossless_formats_come_out_as_they_went_in(encode, format: str, options: dict) -> None:
    np.testing.assert_array_equal(load(encode(PHOTO, format, **options)), PHOTO)
    assert load(encode(PHOTO, format, **options), channels=1).shape == (40, 60, 1)


def test_jpeg_is_near_and_shrinks_in_the_decoder(encode) -> None:
    data = encode(PHOTO, "JPEG", quality=98, subsampling=0)
    header = read_header(data)
    assert np.abs(load(data).astype(int) - PHOTO).mean() < 4
    assert np.abs(decode_jpeg(data, header, 3).astype(int) - PHOTO).mean() < 4
    assert decode_jpeg(data, header, 3, shrink=4).shape == (10, 15, 3)
    assert decode_jpeg(data, header, 1, shrink=8).shape == (5, 8, 1)


def test_grey_becomes_rgb(encode) -> None:
    np.testing.assert_array_equal(load(encode(RAMP)), np.stack([RAMP] * 3, axis=2))


def test_sixteen_bits_keep_their_range(encode) -> None:
    deep = RAMP.astype(np.uint16) * 257
    assert np.abs(load(encode(deep), channels=1)[:, :, 0].astype(int) - RAMP).max() <= 1
    tiff = encode(deep, "TIFF")
    assert np.abs(load(tiff, channels=1)[:, :, 0].astype(int) - RAMP).max() <= 1


def converted(mode: str, format: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(PHOTO).convert(mode).save(file, format)
    return file.getvalue()


@pytest.mark.parametrize(
    ("mode", "format"), [("P", "PNG"), ("RGBA", "PNG"), ("LA", "PNG"), ("1", "PNG"), ("CMYK", "JPEG"), ("P", "GIF")]
)
def test_unusual_modes_are_tolerated(mode: str, format: str) -> None:
    expected = np.asarray(Image.open(io.BytesIO(converted(mode, format))).convert("RGB"))
    assert np.abs(load(converted(mode, format)).astype(int) - expected).max() <= 2


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_applied_and_in_the_header(encode, format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    data = encode(PHOTO, format, exif=exif)
    header = read_header(data)
    assert (header.height, header.width) == (60, 40)
    assert np.abs(load(data).astype(int) - np.rot90(PHOTO, -1)).mean() < 6


def test_an_animation_gives_its_first_image() -> None:
    frames = [Image.fromarray(PHOTO), Image.fromarray(255 - PHOTO)]
    for format in ("GIF", "WEBP", "PNG"):
        file = io.BytesIO()
        frames[0].save(
            file, format, save_all=True, append_images=frames[1:], **({"lossless": True} if format == "WEBP" else {})
        )
        assert np.abs(load(file.getvalue()).astype(int) - PHOTO).mean() < 20


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.99])
def test_a_truncated_image_is_bad(encode, format: str, share: float) -> None:
    data = encode(np.random.default_rng(0).integers(256, size=(40, 60, 3), dtype=np.uint8), format)
    with pytest.raises(BadImage):
        load(data[: int(len(data) * share)])


def test_an_absurd_size_is_refused_from_the_header() -> None:
    size = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + size
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    with pytest.raises(BadImage, match="50000 x 50000 pixels"):
        read_header(data)


@pytest.mark.parametrize(
    ("pixels", "options"),
    [
        (RAMP, {}),
        (PHOTO, {}),
        (RAMP.astype(np.uint16), {}),
        (PHOTO[..., :2], {}),
        (np.dstack([PHOTO, RAMP]), {}),
        (RAMP, {"transparency": 7}),
        (PHOTO, {"transparency": (7, 7, 7)}),
    ],
)
def test_the_quick_png_header_agrees_with_pillow(encode, pixels: np.ndarray, options: dict) -> None:
    data = encode(pixels, **options)
    assert plain_png_header(data) == any_header(data)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 40}])
@pytest.mark.parametrize("pixels", [RAMP, PHOTO])
def test_the_quick_jpeg_header_agrees_with_pillow(encode, pixels: np.ndarray, options: dict) -> None:
    for orientation in range(9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = encode(pixels, "JPEG", exif=exif, **options)
        quick, careful = plain_jpeg_header(data), any_header(data)
        fields = [(header.format, header.mode, header.height, header.width) for header in (quick, careful)]
        assert fields[0] == fields[1]
        assert quick.orientation == max(orientation, 1)
        assert quick.sequential == ("progressive" not in options)


def test_the_quick_jpeg_header_leaves_the_unusual_to_others(encode) -> None:
    data = encode(PHOTO, "JPEG")
    assert plain_jpeg_header(data[:-1]) is None
    assert plain_jpeg_header(data + b"garbage") is None
    assert plain_jpeg_header(converted("CMYK", "JPEG")) is None
    assert plain_jpeg_header(encode(PHOTO)) is None


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("sampling", ["444", "422", "420", "440", "411", "Gray", "restart"])
@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 300), shrink=st.sampled_from([1, 2, 4, 8]))
@example(rows=64, shrink=1)
@example(rows=13, shrink=4)
def test_a_jpeg_decoded_to_a_row_has_the_rows_above_it(
    encode, sampling: str, exact: bool, rows: int, shrink: int
) -> None:
    if sampling == "restart":
        data = encode(TALL, "JPEG", restart_marker_rows=1)
    else:
        pixels = TALL[:, :, :1] if sampling == "Gray" else TALL
        data = simplejpeg.encode_jpeg(
            np.ascontiguousarray(pixels), 90, "GRAY" if sampling == "Gray" else "RGB", sampling
        )
    header, channels = read_header(data), 1 if sampling == "Gray" else 3
    assert header.sequential
    whole = decode_jpeg(data, header, channels, shrink=shrink, exact=exact)
    upper = decode_jpeg(data, header, channels, shrink=shrink, rows=rows, exact=exact)
    seen = -(-rows // shrink)
    assert seen <= len(upper) <= min(rows + 64, 300) // shrink + 1
    np.testing.assert_array_equal(upper[:seen], whole[:seen])


@settings(deadline=None)
@given(st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"]), st.data())
def test_damage_ends_in_pixels_or_in_a_bad_sample(format: str, data: st.DataObject) -> None:
    file = io.BytesIO()
    Image.fromarray(PHOTO).save(file, format)
    damaged = bytearray(file.getvalue())
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        image = load(bytes(damaged))
    except BadImage:
        return
    assert image.dtype == np.uint8
    assert image.shape[2] == 3
