"""From the bytes of an image file to pixels: the header is judged first, then the fastest decoder for it runs.

JPEG is decoded no further than the last row that is wanted and at no larger a scale, by libjpeg-turbo; plain PNG and
WebP by OpenCV; everything else, and whatever those refuse, by Pillow.
"""

from __future__ import annotations

import io
import struct
import warnings
from dataclasses import dataclass

import cv2
import numpy as np
import simplejpeg
from PIL import Image, ImageOps

Pixels = np.ndarray  # uint8 [height, width, channels], RGB where channels is 3
Data = bytes | memoryview

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
MAX_PIXELS = 178_956_970  # where Pillow, too, speaks of a decompression bomb
ORIENTATION_TAG, TRANSPOSED = 0x0112, range(5, 9)
PNG_START, PNG_SIZE = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", struct.Struct(">IIBB")
PNG_MODES = {(8, 0): "L", (8, 2): "RGB", (16, 0): "I;16"}  # by depth and colour type
# What OpenCV decodes as Pillow would; palettes, alpha, CMYK and the like go through Pillow.
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
    """The header of a grey or RGB PNG without EXIF; None for all else.

    Small PNGs are common and Pillow needs longer for the header than OpenCV for the pixels.
    """
    start = bytes(data[:33])
    if not start.startswith(PNG_START) or len(start) < 33 or b"eXIf" in bytes(data):
        return None
    width, height, depth, color = PNG_SIZE.unpack_from(start, len(PNG_START))
    mode = PNG_MODES.get((depth, color))
    return Header("PNG", mode, height, width) if mode and width and height else None


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
            return Header("JPEG", mode, height, width, orientation, position + 4, marker in BASELINE)
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
    except Image.DecompressionBombError:
        raise BadImage(f"the image has more than {MAX_PIXELS} pixels") from None
    except Exception as error:  # Pillow's parsers raise whatever the damage leads them into
        raise BadImage(f"no readable image header ({type(error).__name__})") from None
    width, height = image.size[::-1] if turned else image.size
    return Header(str(image.format), image.mode, height, width)


def decode(data: Data, header: Header, channels: int) -> Pixels:
    """Pixels of the (first) image in `data`, whole and upright.

    Args:
        data: the image file.
        header: what `read_header` said of it.
        channels: 1 for grey, 3 for RGB; alpha is dropped.

    Returns:
        uint8 [height, width, channels].

    Raises:
        BadImage: the data are cut off or damaged.
    """
    if header.mode in CV2_MODES.get(header.format, ()):
        flag = cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR_RGB
        try:
            image = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
        except cv2.error:
            image = None
        if image is not None:
            return image[:, :, None] if channels == 1 else image
    return decode_with_pillow(data, channels)


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


def decode_with_pillow(data: Data, channels: int) -> Pixels:
    """As `decode`, for what OpenCV does not decode; slower."""
    try:
        file = Image.open(io.BytesIO(data), formats=FORMATS)
        file.load()
        image = ImageOps.exif_transpose(file)
        if image.mode.startswith("I"):  # Pillow would clip 16-bit values to 255
            values = np.clip(np.asarray(image, dtype=np.int64), 0, 65535) >> 8
            image = Image.fromarray(values.astype(np.uint8))
        if image.mode == "P":  # palettes may hold transparency, which a direct conversion warns about
            image = image.convert("RGBA")
        pixels = np.array(image.convert("L" if channels == 1 else "RGB"))
    except Exception as error:  # as in read_header
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadImage(f"the image cannot be decoded ({reason})") from None
    return pixels[:, :, None] if channels == 1 else pixels
