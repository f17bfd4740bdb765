"""From the bytes of an image file to pixels: the header is judged first, then the fastest decoder for it runs.

JPEG is decoded no further than the last row that is wanted and at no larger a scale, by libjpeg-turbo; opaque PNG and
WebP by OpenCV; everything else, and whatever those refuse, by Pillow. Transparent pixels show the background.
"""

from __future__ import annotations

import contextlib
import io
import struct
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import simplejpeg
from PIL import Image, ImageOps

from pipeline.config.data import Color

Pixels = np.ndarray  # uint8 [height, width, channels], RGB where channels is 3
Data = bytes | memoryview

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
MAX_PIXELS = 178_956_970  # where Pillow, too, speaks of a decompression bomb
ORIENTATION_TAG, TRANSPOSED = 0x0112, range(5, 9)
PNG_START, PNG_SIZE = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", struct.Struct(">IIBB")
PNG_DEPTH = len(PNG_START) + 8  # offset of its bits per sample
PNG_MODES = {(8, 0): "L", (8, 2): "RGB", (8, 4): "LA", (8, 6): "RGBA", (16, 0): "I;16"}  # by depth and colour type
# What OpenCV decodes as Pillow would where nothing is transparent; palettes, CMYK and the like go through Pillow.
CV2_MODES = {"PNG": {"L", "RGB", "I;16"}, "JPEG": {"L", "RGB"}, "WEBP": {"RGB"}}

JPEG_START, JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
BASELINE, PROGRESSIVE, SCAN, APP1 = {0xC0, 0xC1}, 0xC2, 0xDA, 0xE1
JPEG_FRAME = struct.Struct(">BHHB")  # precision, height, width, components
JPEG_MODES = {1: "L", 3: "RGB"}
EXIF, BYTE_ORDERS = b"Exif\0\0", {b"II": "<", b"MM": ">"}
MOST_ROWS_IN_A_BLOCK = 32  # of a JPEG: 8 rows, sampled up to four times

# Sizes are judged here; a warning per process would only repeat it.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module="PIL")  # about damage, which is told of by BadImage
cv2.utils.logging.setLogLevel(0)  # damaged files are told of by BadImage


class BadImage(Exception):
    """Bytes that are no image that can be used; the message is the reason."""


@dataclass(frozen=True, slots=True)
class Header:
    """What an image's header says; height and width are those after EXIF orientation."""

    format: str
    mode: str
    height: int
    width: int
    transparent: bool = False  # there may be transparent pixels: an alpha channel, or a colour that stands for them
    orientation: int = 1  # of the stored pixels, by EXIF; only where `decode_jpeg` may be used
    frame: int = 0  # byte of a JPEG's frame header; 0 for what `decode_jpeg` does not decode
    sequential: bool = False  # a JPEG whose rows stand in the file from top to bottom


def read_header(data: Data) -> Header:
    """Format, mode and size without decoding.

    Raises:
        BadImage: not an image of a known format, or of more than MAX_PIXELS pixels.
    """
    if not len(data):
        raise BadImage("the image has no bytes")
    header = plain_png_header(data) or plain_jpeg_header(data) or any_header(data)
    if header.width * header.height > MAX_PIXELS:
        raise BadImage(f"the image has {header.width} x {header.height} pixels, more than {MAX_PIXELS}")
    return header


def plain_png_header(data: Data) -> Header | None:
    """The header of a grey or RGB PNG, with or without alpha, that has no EXIF; None for all else.

    Small PNGs are common and Pillow needs longer for the header than OpenCV for the pixels.
    """
    if bytes(data[: len(PNG_START)]) != PNG_START or len(data) < 33:
        return None
    whole = bytes(data)
    if b"eXIf" in whole:
        return None
    width, height, depth, color = PNG_SIZE.unpack_from(whole, len(PNG_START))
    mode = PNG_MODES.get((depth, color))
    transparent = mode in ("LA", "RGBA") or b"tRNS" in whole[: whole.find(b"IDAT")]
    return Header("PNG", mode, height, width, transparent) if mode and width and height else None


def plain_jpeg_header(data: Data) -> Header | None:
    """The header of a whole grey or YCbCr JPEG of 8 bits; None for all else.

    The end marker must be there: a decoder that stops at the last wanted row would not see that the file was cut off.
    """
    if bytes(data[:3]) != JPEG_START or bytes(data[-2:]) != JPEG_END:
        return None
    position, orientation = 2, 1
    while position + 10 <= len(data) and data[position] == 0xFF:
        marker, length = data[position + 1], (data[position + 2] << 8) + data[position + 3]
        if marker in BASELINE or marker == PROGRESSIVE:
            precision, height, width, components = JPEG_FRAME.unpack_from(data, position + 4)
            mode = JPEG_MODES.get(components)
            if precision != 8 or mode is None or not height or not width:
                return None
            if orientation in TRANSPOSED:
                height, width = width, height
            return Header("JPEG", mode, height, width, False, orientation, position + 4, marker in BASELINE)
        if marker == APP1 and bytes(data[position + 4 : position + 10]) == EXIF:
            orientation = exif_orientation(bytes(data[position + 10 : position + 2 + length]))
        if marker == SCAN or length < 2:
            return None
        position += 2 + length
    return None


def exif_orientation(tiff: bytes) -> int:
    """1 to 8, as the first directory of EXIF data says; 1 where it says nothing sensible."""
    order = BYTE_ORDERS.get(tiff[:2])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, _, _, value = struct.unpack_from(order + "HHIH", tiff, entry)
            if tag == ORIENTATION_TAG:
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


def any_header(data: Data) -> Header:
    """The header as Pillow reads it; raises BadImage."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        turned = "exif" in image.info and image.getexif().get(ORIENTATION_TAG) in TRANSPOSED
        transparent = image.has_transparency_data
    except Image.DecompressionBombError:
        raise BadImage(f"the image has more than {MAX_PIXELS} pixels") from None
    except Exception as error:  # Pillow's parsers raise whatever the damage leads them into
        raise BadImage(f"no readable image header ({type(error).__name__})") from None
    width, height = image.size[::-1] if turned else image.size
    return Header(str(image.format), image.mode, height, width, transparent)


def decode(data: Data, header: Header, channels: int, background: Color) -> Pixels:
    """Pixels of the (first) image in `data`, whole and upright.

    Args:
        data: the image file.
        header: what `read_header` said of it.
        channels: 1 for grey, 3 for RGB.
        background: what shows through transparent pixels.

    Returns:
        uint8 [height, width, channels].

    Raises:
        BadImage: the data are cut off or damaged.
    """
    if header.mode in CV2_MODES.get(header.format, ()) and not header.transparent:
        flag = cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR_RGB
        try:
            image = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
        except cv2.error:
            image = None
        if image is not None:
            return image[:, :, None] if channels == 1 else image
    return decode_with_pillow(data, channels, background)


def decode_jpeg(
    data: Data, header: Header, channels: int, *, shrink: int = 1, rows: int | None = None, exact: bool = True
) -> Pixels | None:
    """The stored pixels of a JPEG whose header has a `frame`, not yet turned upright; None where it is damaged.

    Args:
        data: the image file.
        header: what `read_header` said of it.
        channels: 1 for grey, 3 for RGB.
        shrink: 1, 2, 4 or 8: decode at this fraction of the size, which costs less.
        rows: stored rows wanted, from the top; a sequential JPEG is decoded no further. Default: all.
        exact: the slow, accurate transform and chroma upsampling; else libjpeg-turbo's fast ones.
    """
    _, height, width, _ = JPEG_FRAME.unpack_from(data, header.frame)
    if rows is not None and header.sequential and rows + MOST_ROWS_IN_A_BLOCK < height:
        # The decoder believes the header and stops there.
        height = -(-rows // MOST_ROWS_IN_A_BLOCK) * MOST_ROWS_IN_A_BLOCK
        lower = bytearray(data)
        lower[header.frame + 1 : header.frame + 3] = height.to_bytes(2, "big")
        data = memoryview(lower)
    smallest = {} if shrink == 1 else {"min_height": -(-height // shrink), "min_width": -(-width // shrink)}
    try:
        image: Pixels = simplejpeg.decode_jpeg(
            data,
            "GRAY" if channels == 1 else "RGB",
            fastdct=not exact,
            fastupsample=not exact,
            strict=False,  # bytes between the last wanted row and the next marker are a "recoverable error"
            **smallest,
        )
    except ValueError:
        return None
    return image


def decode_with_pillow(data: Data, channels: int, background: Color) -> Pixels:
    """As `decode`, for what OpenCV does not decode; slower."""
    with undecodable():
        return flatten(open_upright(data), channels, background)


def decode_transparent(data: Data) -> Image.Image | None:
    """The image in RGBA, whole and upright; None where no pixel is transparent. Raises BadImage."""
    with undecodable():
        image = eight_bits(open_upright(data))
        if not image.has_transparency_data:
            return None
        image = image.convert("RGBA")
    return None if image.getchannel("A").getextrema() == (255, 255) else image


@contextlib.contextmanager
def undecodable() -> Iterator[None]:
    """Turns what Pillow raises, which is whatever the damage leads it into, into BadImage."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadImage(f"the image cannot be decoded ({reason})") from None


def open_upright(data: Data) -> Image.Image:
    """The (first) image of a file in the mode that it is stored in; raises whatever Pillow does."""
    file = Image.open(io.BytesIO(data), formats=FORMATS)
    file.load()
    key = file.info.get("transparency")
    if file.format == "PNG" and file.mode == "L" and isinstance(key, int):
        file.info["transparency"] = key * 255 // (2 ** data[PNG_DEPTH] - 1)  # Pillow scales the pixels alone
    return ImageOps.exif_transpose(file)


def flatten(image: Image.Image, channels: int, background: Color) -> Pixels:
    """Pixels of an image of any mode, uint8 [height, width, channels], over `background` where it is transparent."""
    mode = "L" if channels == 1 else "RGB"
    image = eight_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        ground = Image.new("RGB", image.size, background).convert(mode)
        ground.paste(image, mask=image)  # by its alpha, rounded to the nearest
        image = ground
    pixels = np.array(image.convert(mode))
    return pixels[:, :, None] if channels == 1 else pixels


def eight_bits(image: Image.Image) -> Image.Image:
    """An image of 16 bits with 8, and the transparent colour of its PNG with it; others as they are."""
    key = image.info.get("transparency")
    if image.mode.startswith("I"):  # Pillow would clip to 255
        values = np.clip(np.asarray(image, dtype=np.int64), 0, 65535)
        grey = Image.fromarray((values >> 8).astype(np.uint8))
        if key is not None:
            grey.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
        return grey
    if image.mode == "RGB" and isinstance(key, tuple) and max(key) > 255:  # Pillow has kept the high bytes alone
        image = image.copy()
        image.info["transparency"] = tuple(value >> 8 for value in key)
    return image
