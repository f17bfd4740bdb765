"""Decodes image files: checks the header first, then runs the fastest decoder for it.

libjpeg-turbo decodes JPEG only down to the last row needed, and at the smallest scale that suffices; OpenCV decodes
opaque PNG and WebP; Pillow decodes everything else, and whatever those reject. Transparent pixels show the background.
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

Pixels = np.ndarray  # uint8 [height, width, channels], RGB if channels is 3
Data = bytes | memoryview

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
MAX_PIXELS = 178_956_970  # above which Pillow, too, raises DecompressionBombError
ORIENTATION_TAG, TRANSPOSED = 0x0112, range(5, 9)
PNG_START, PNG_SIZE = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", struct.Struct(">IIBB")
PNG_DEPTH = len(PNG_START) + 8  # offset of the bits per sample
PNG_MODES = {(8, 0): "L", (8, 2): "RGB", (8, 4): "LA", (8, 6): "RGBA", (16, 0): "I;16"}  # by depth and colour type
# Modes that OpenCV decodes as Pillow does if nothing is transparent; palettes, CMYK and the like go through Pillow.
CV2_MODES = {"PNG": {"L", "RGB", "I;16"}, "JPEG": {"L", "RGB"}, "WEBP": {"RGB"}}

JPEG_START, JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
BASELINE, PROGRESSIVE, SCAN, APP1 = {0xC0, 0xC1}, 0xC2, 0xDA, 0xE1
JPEG_FRAME = struct.Struct(">BHHB")  # precision, height, width, components
JPEG_MODES = {1: "L", 3: "RGB"}
EXIF, BYTE_ORDERS = b"Exif\0\0", {b"II": "<", b"MM": ">"}
JPEG_SAMPLING = JPEG_FRAME.size + 1  # offset in a frame of the first component's sampling factors; 3 bytes for each
BLOCK = 8  # rows of a JPEG's block

# Sizes are checked here; a warning per process would only repeat the check.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module="PIL")  # about damage, which BadImage reports
cv2.utils.logging.setLogLevel(0)  # BadImage reports damaged files


class BadImage(Exception):
    """The bytes are not a usable image; the message is the reason."""


@dataclass(frozen=True, slots=True)
class Header:
    """Contents of an image header; height and width are those after EXIF orientation."""

    format: str
    mode: str
    height: int
    width: int
    transparent: bool = False  # may have transparent pixels: an alpha channel or a transparent colour
    orientation: int = 1  # EXIF orientation of the stored pixels; set only if `decode_jpeg` applies
    frame: int = 0  # offset of a JPEG's frame header; 0 if `decode_jpeg` does not apply
    sequential: bool = False  # a JPEG that stores its rows from top to bottom


def read_header(data: Data) -> Header:
    """Format, mode and size without decoding.

    Raises:
        BadImage: not an image of a known format, or more than MAX_PIXELS pixels.
    """
    if not len(data):
        raise BadImage("the image is empty")
    header = plain_png_header(data) or plain_jpeg_header(data) or any_header(data)
    if header.width * header.height > MAX_PIXELS:
        raise BadImage(f"the image has {header.width} x {header.height} pixels, more than {MAX_PIXELS}")
    return header


def plain_png_header(data: Data) -> Header | None:
    """The header of a grey or RGB PNG, with or without alpha, that has no EXIF; None for all others.

    Small PNGs are common, and Pillow takes longer to read the header than OpenCV to decode the pixels.
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
    """The header of a complete 8-bit grey or YCbCr JPEG; None for all others.

    The end marker must be present: a decoder that stops at the last row needed would not notice a truncated file.
    simplejpeg's own header says neither how the image is turned nor where its frame is, which `decode_jpeg` needs, and
    Pillow takes 40 times as long.
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
    """The orientation, 1 to 8, in the first directory of EXIF data; 1 if absent or invalid."""
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
    except Exception as error:  # damaged data make Pillow's parsers raise almost anything
        raise BadImage(f"no readable image header ({type(error).__name__})") from None
    width, height = image.size[::-1] if turned else image.size
    return Header(str(image.format), image.mode, height, width, transparent)


def decode(data: Data, header: Header, channels: int, background: Color) -> Pixels:
    """Decodes the (first) image in `data`, whole and upright.

    Args:
        data: the image file.
        header: its header, from `read_header`.
        channels: 1 for grey, 3 for RGB.
        background: what shows through transparent pixels.

    Returns:
        uint8 [height, width, channels].

    Raises:
        BadImage: the data are truncated or damaged.
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
    """The stored pixels of a JPEG whose header has a `frame`, not yet turned upright; None if it is damaged.

    Args:
        data: the image file.
        header: its header, from `read_header`.
        channels: 1 for grey, 3 for RGB.
        shrink: 1, 2, 4 or 8: factor by which to reduce both sides while decoding, which is cheaper.
        rows: number of stored rows needed, from the top; a sequential JPEG is decoded no further. Default: all.
        exact: use the slow, accurate DCT and chroma upsampling; otherwise libjpeg-turbo's fast ones.
    """
    _, height, width, _ = JPEG_FRAME.unpack_from(data, header.frame)
    if rows is not None and header.sequential:
        enough = enough_rows(data, header, rows, shrink if exact else 0)
        if enough < height:  # the decoder trusts the patched header and stops there
            height, patched = enough, bytearray(data)
            patched[header.frame + 1 : header.frame + 3] = height.to_bytes(2, "big")
            data = memoryview(patched)
    smallest = {} if shrink == 1 else {"min_height": -(-height // shrink), "min_width": -(-width // shrink)}
    try:
        image: Pixels = simplejpeg.decode_jpeg(
            data,
            "GRAY" if channels == 1 else "RGB",
            fastdct=not exact,
            fastupsample=not exact,
            strict=False,  # bytes between the last decoded row and the next marker are a "recoverable error"
            **smallest,
        )
    except ValueError:
        return None
    return image


def enough_rows(data: Data, header: Header, rows: int, shrink: int) -> int:
    """How far down to decode a JPEG so that its first `rows` stored rows are right, in whole blocks.

    `shrink` is 0 unless chroma is upsampled accurately: by interpolation with the next row of the shrunk image.
    """
    start = header.frame + JPEG_SAMPLING
    *_, components = JPEG_FRAME.unpack_from(data, header.frame)
    factors = [both & 15 for both in bytes(data[start : start + 3 * components : 3])]
    factor = max(*factors, 1, 1)  # damaged data may lack them
    return -(-(rows + factor * shrink) // (BLOCK * factor)) * BLOCK * factor


def decode_with_pillow(data: Data, channels: int, background: Color) -> Pixels:
    """Like `decode`, for images that OpenCV does not decode; slower."""
    with undecodable():
        return flatten(open_upright(data), channels, background)


def decode_transparent(data: Data) -> Image.Image | None:
    """The image in RGBA, whole and upright; None if no pixel is transparent. Raises BadImage."""
    with undecodable():
        image = eight_bits(open_upright(data))
        if not image.has_transparency_data:
            return None
        image = image.convert("RGBA")
    return None if image.getchannel("A").getextrema() == (255, 255) else image


@contextlib.contextmanager
def undecodable() -> Iterator[None]:
    """Turns whatever Pillow raises on damaged data into BadImage."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadImage(f"the image cannot be decoded ({reason})") from None


def open_upright(data: Data) -> Image.Image:
    """The (first) image of a file, upright, in its stored mode; raises whatever Pillow raises."""
    file = Image.open(io.BytesIO(data), formats=FORMATS)
    file.load()
    key = file.info.get("transparency")
    if file.format == "PNG" and file.mode == "L" and isinstance(key, int):
        file.info["transparency"] = key * 255 // (2 ** data[PNG_DEPTH] - 1)  # Pillow scales only the pixels
    return ImageOps.exif_transpose(file)


def flatten(image: Image.Image, channels: int, background: Color) -> Pixels:
    """Pixels of an image of any mode, uint8 [height, width, channels], over `background` where it is transparent."""
    mode = "L" if channels == 1 else "RGB"
    image = eight_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        ground = Image.new("RGB", image.size, background).convert(mode)
        ground.paste(image, mask=image)  # blends by alpha, rounding to nearest
        image = ground
    pixels = np.array(image.convert(mode))
    return pixels[:, :, None] if channels == 1 else pixels


def eight_bits(image: Image.Image) -> Image.Image:
    """Converts a 16-bit image, and its PNG's transparent colour, to 8 bits; returns others unchanged."""
    key = image.info.get("transparency")
    if image.mode.startswith("I"):  # Pillow would clip to 255
        values = np.clip(np.asarray(image, dtype=np.int64), 0, 65535)
        grey = Image.fromarray((values >> 8).astype(np.uint8))
        if key is not None:
            grey.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
        return grey
    if image.mode == "RGB" and isinstance(key, tuple) and max(key) > 255:  # Pillow kept only the high bytes
        image = image.copy()
        image.info["transparency"] = tuple(value >> 8 for value in key)
    return image
