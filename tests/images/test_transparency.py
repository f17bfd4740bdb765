"""Transparent pixels show the background, however a file encodes transparency."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from pipeline.config.data import WHITE, Color
from pipeline.images.decode import decode, decode_transparent, decode_with_pillow, flatten, read_header

SIDE = 16
TEAL = (10, 140, 150)
RED = (200, 30, 20)  # of the disc; under transparent pixels lies BLACK, as most programs leave it
BLACK = (0, 0, 0)
INSIDE, OUTSIDE, KEYED = (8, 8), (0, 0), (0, 15)


def drawing(soft: bool = True) -> Image.Image:
    """A red square on a transparent ground; `soft` gives it an edge of half the alpha."""
    pixels = np.zeros((SIDE, SIDE, 4), np.uint8)
    if soft:
        pixels[3:13, 3:13] = (*RED, 128)
    pixels[4:12, 4:12] = (*RED, 255)
    return Image.fromarray(pixels)


def saved(image: Image.Image, format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def palette(alpha: bool) -> bytes:
    """A palette image: red is entry 1, the ground entry 0; transparent by alpha bytes or by one index."""
    image = Image.fromarray((np.array(drawing(soft=False))[..., 3] // 255).astype(np.uint8), "P")
    image.putpalette([*BLACK, *RED])
    return saved(image, "PNG", transparency=b"\0\xff" if alpha else 0)


def png(values: np.ndarray, key: bytes | None) -> bytes:
    """A PNG of 16 bits: [H, W, samples] of one grey, grey and alpha, RGB or RGBA."""
    height, width, samples = values.shape
    color = {1: 0, 2: 4, 3: 2, 4: 6}[samples]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, color, 0, 0, 0)
    keys = [] if key is None else [(b"tRNS", key)]
    return chunks((b"IHDR", header), *keys, (b"IDAT", zlib.compress(rows)))


def chunks(*named: tuple[bytes, bytes]) -> bytes:
    """A PNG of these chunks."""
    body = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in (*named, (b"IEND", b""))
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def deep(samples: int) -> np.ndarray:
    """The drawing in 16 bits."""
    rgba = np.array(drawing(soft=False)).astype(np.uint16) * 257
    return rgba[..., {1: [0], 2: [0, 3], 3: [0, 1, 2], 4: [0, 1, 2, 3]}[samples]]


def grey(image: Image.Image) -> Image.Image:
    return Image.merge("LA", (image.getchannel(0), image.getchannel(3)))


def premultiplied() -> bytes:
    """A TIFF whose colours were multiplied by alpha: ExtraSamples (338) is 1, where Pillow only ever writes 2."""
    pixels = np.array(drawing()).astype(np.uint16)
    pixels[..., :3] = (pixels[..., :3] * pixels[..., 3:] + 127) // 255
    data = saved(Image.fromarray(pixels.astype(np.uint8)), "TIFF")
    plain, multiplied = (struct.pack("<HHIH", 338, 3, 1, value) for value in (2, 1))
    assert data.count(plain) == 1
    return data.replace(plain, multiplied)


def animation(format: str) -> bytes:
    return saved(
        drawing(soft=False), format, save_all=True, append_images=[Image.new("RGBA", (SIDE, SIDE), (0, 0, 255, 9))]
    )


COLOUR: dict[str, Callable[[], bytes]] = {
    "RGBA PNG": lambda: saved(drawing(), "PNG"),
    "palette PNG with alpha": lambda: palette(alpha=True),
    "palette PNG with a colour": lambda: palette(alpha=False),
    "RGB PNG with a colour": lambda: saved(drawing(soft=False).convert("RGB"), "PNG", transparency=BLACK),
    "16-bit RGBA PNG": lambda: png(deep(4), None),
    "16-bit RGB PNG with a colour": lambda: png(deep(3) + 300, struct.pack(">HHH", 300, 300, 300)),
    "lossless WebP": lambda: saved(drawing(), "WEBP", lossless=True),
    "lossy WebP": lambda: saved(drawing(), "WEBP", quality=100),
    "animated WebP": lambda: animation("WEBP"),
    "animated PNG": lambda: animation("PNG"),
    "animated GIF": lambda: animation("GIF"),
    "GIF": lambda: saved(drawing(soft=False), "GIF"),
    "TIFF": lambda: saved(drawing(), "TIFF"),
    "premultiplied TIFF": premultiplied,
}
GREY: dict[str, Callable[[], bytes]] = {
    "LA PNG": lambda: saved(grey(drawing()), "PNG"),
    "L PNG with a value": lambda: saved(drawing(soft=False).getchannel(0), "PNG", transparency=0),
    "16-bit LA PNG": lambda: png(deep(2), None),
    "16-bit L PNG with a value": lambda: png(deep(1), struct.pack(">H", 0)),
    "LA TIFF": lambda: saved(grey(drawing()), "TIFF"),
}


def shown(data: bytes, channels: int, background: Color) -> np.ndarray:
    return decode(data, read_header(data), channels, background).astype(int)


@pytest.mark.parametrize("background", [WHITE, TEAL])
@pytest.mark.parametrize("kind", COLOUR)
def test_colours_are_seen_on_the_background(kind: str, background: Color) -> None:
    data = COLOUR[kind]()
    assert read_header(data).transparent
    pixels = shown(data, 3, background)
    tolerance = 24 if kind == "lossy WebP" else 2
    assert np.abs(pixels[OUTSIDE] - background).max() == 0
    assert np.abs(pixels[INSIDE] - RED).max() <= tolerance
    if kind in ("RGBA PNG", "lossless WebP", "TIFF", "premultiplied TIFF"):
        expected = np.round(np.array(RED) * 128 / 255 + np.array(background) * 127 / 255)
        assert np.abs(pixels[3, 8] - expected).max() <= (kind == "premultiplied TIFF")


@pytest.mark.parametrize("kind", [*COLOUR, *GREY])
def test_a_grey_model_sees_the_luminance_of_image_and_background(kind: str) -> None:
    data = (COLOUR | GREY)[kind]()
    pixels = shown(data, 1, TEAL)[..., 0]
    in_colour = Image.fromarray(shown(data, 3, TEAL).astype(np.uint8)).convert("L")
    assert pixels[OUTSIDE] == Image.new("RGB", (1, 1), TEAL).convert("L").getpixel((0, 0))
    if kind in GREY:
        assert abs(pixels[INSIDE] - RED[0]) <= 1
    else:
        assert np.abs(pixels - np.array(in_colour)).max() <= 1


def test_rounding_is_to_the_nearest() -> None:
    pixels = np.random.default_rng(0).integers(256, size=(300, 300, 4), dtype=np.uint8)
    alpha = pixels[..., 3:] / 255
    expected = np.round(pixels[..., :3] * alpha + np.array(TEAL) * (1 - alpha))
    np.testing.assert_array_equal(flatten(Image.fromarray(pixels), 3, TEAL), expected)


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF", "GIF"])
def test_opaque_images_are_what_they_were(format: str) -> None:
    opaque = np.random.default_rng(0).integers(256, size=(SIDE, SIDE, 3), dtype=np.uint8)
    options = {"lossless": True} if format == "WEBP" else {}
    data = saved(Image.fromarray(opaque), format, **options)
    assert not read_header(data).transparent
    assert decode_transparent(data) is None
    np.testing.assert_array_equal(shown(data, 3, TEAL), decode_with_pillow(data, 3, WHITE))
    with_channel = saved(Image.fromarray(opaque).convert("RGBA"), "PNG")
    np.testing.assert_array_equal(shown(with_channel, 3, TEAL), opaque)
    assert decode_transparent(with_channel) is None


def test_orientation_and_transparency_go_together() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = drawing()
    image.putpixel((0, 0), (*RED, 255))  # is at the upper right once turned clockwise
    data = saved(image, "PNG", exif=exif)
    pixels = shown(data, 3, TEAL)
    assert tuple(pixels[KEYED]) == RED
    assert tuple(pixels[OUTSIDE]) == TEAL


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_transparent_value_of_few_bits_is_that_value(bits: int) -> None:
    values = np.arange(8) % 2**bits
    packed = np.packbits(np.unpackbits(values.astype(np.uint8)[:, None], axis=1)[:, -bits:])
    header = struct.pack(">IIBBBBB", len(values), 1, bits, 0, 0, 0, 0)
    for key in range(2**bits):
        data = chunks(
            (b"IHDR", header), (b"tRNS", struct.pack(">H", key)), (b"IDAT", zlib.compress(b"\0" + bytes(packed)))
        )
        seen = shown(data, 3, TEAL)[0]
        scaled = np.repeat(values[:, None] * 255 // (2**bits - 1), 3, axis=1)
        np.testing.assert_array_equal(seen, np.where((values == key)[:, None], TEAL, scaled))


def test_a_deep_transparent_value_is_that_value_alone() -> None:
    values = np.full((4, 4, 1), 0x1234, np.uint16)
    values[0, 0] = 0x1235
    pixels = shown(png(values, struct.pack(">H", 0x1234)), 1, WHITE)[..., 0]
    assert pixels[0, 0] == 0x12
    assert (pixels.ravel()[1:] == 255).all()
