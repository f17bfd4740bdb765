"""From the bytes of an image file to pixels: the header is judged first, then the fastest decoder for it runs."""

from __future__ import annotations

import io
import struct
import warnings
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image, ImageOps

Pixels = np.ndarray  # uint8 [height, width, channels], RGB where channels is 3

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
MAX_PIXELS = 178_956_970  # where Pillow, too, speaks of a decompression bomb
ORIENTATION_TAG, TRANSPOSED = 0x0112, range(5, 9)
PNG_START, PNG_SIZE = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", struct.Struct(">IIBB")
PNG_MODES = {(8, 0): "L", (8, 2): "RGB", (16, 0): "I;16"}  # by depth and colour type
# What OpenCV decodes as Pillow would; palettes, alpha, CMYK and the like go through Pillow.
CV2_MODES = {"PNG": {"L", "RGB", "I;16"}, "JPEG": {"L", "RGB"}, "WEBP": {"RGB"}}
REDUCED = {
    1: {2: cv2.IMREAD_REDUCED_GRAYSCALE_2, 4: cv2.IMREAD_REDUCED_GRAYSCALE_4, 8: cv2.IMREAD_REDUCED_GRAYSCALE_8},
    3: {2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8},
}

# Sizes are judged here; a warning per process would only repeat it.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
cv2.utils.logging.setLogLevel(0)  # damaged files are reported in the quarantine manifest, with their keys


class BadSample(Exception):
    """A sample that cannot be used; its message is the reason, and `key` says which one, once that is known."""

    key = ""


@dataclass(frozen=True)
class Header:
    """What an image's header says; height and width are those after EXIF orientation."""

    format: str
    mode: str
    height: int
    width: int


def read_header(data: bytes | memoryview) -> Header:
    """Format, mode and size without decoding.

    Raises:
        BadSample: not an image of a known format, or of more than MAX_PIXELS pixels.
    """
    if not len(data):
        raise BadSample("the image has no bytes")
    header = plain_png_header(data) or any_header(data)
    if header.width * header.height > MAX_PIXELS:
        raise BadSample(f"the image has {header.width} x {header.height} pixels, more than {MAX_PIXELS}")
    return header


def plain_png_header(data: bytes | memoryview) -> Header | None:
    """The header of a grey or RGB PNG without EXIF; None for all else.

    Small PNGs are common and Pillow needs longer for the header than OpenCV for the pixels.
    """
    start = bytes(data[:33])
    if not start.startswith(PNG_START) or len(start) < 33 or b"eXIf" in bytes(data):
        return None
    width, height, depth, color = PNG_SIZE.unpack_from(start, len(PNG_START))
    mode = PNG_MODES.get((depth, color))
    return Header("PNG", mode, height, width) if mode and width and height else None


def any_header(data: bytes | memoryview) -> Header:
    """The header as Pillow reads it; raises BadSample."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        turned = "exif" in image.info and image.getexif().get(ORIENTATION_TAG) in TRANSPOSED
    except Image.DecompressionBombError:
        raise BadSample(f"the image has more than {MAX_PIXELS} pixels") from None
    except Exception as error:  # Pillow's parsers raise whatever the damage leads them into
        raise BadSample(f"no readable image header ({type(error).__name__})") from None
    width, height = image.size[::-1] if turned else image.size
    return Header(str(image.format), image.mode, height, width)


def decode(data: bytes | memoryview, header: Header, channels: int, shrink: int = 1) -> Pixels:
    """Pixels of the (first) image in `data`, upright.

    Args:
        data: the image file.
        header: what `read_header` said of it.
        channels: 1 for grey, 3 for RGB; alpha is dropped.
        shrink: 1, 2, 4 or 8: JPEG is decoded at this fraction of its size, which costs less; others at full size.

    Returns:
        uint8 [height, width, channels]; size ceil(header's / shrink) for JPEG.

    Raises:
        BadSample: the data are cut off or damaged.
    """
    if header.mode in CV2_MODES.get(header.format, ()):
        flag = cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR
        if shrink > 1 and header.format == "JPEG":
            flag = REDUCED[channels][shrink]
        try:
            image = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
        except cv2.error:
            image = None
        if image is not None:
            return image[:, :, None] if channels == 1 else cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)
    return decode_with_pillow(data, channels)


def decode_with_pillow(data: bytes | memoryview, channels: int) -> Pixels:
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
        raise BadSample(f"the image cannot be decoded ({reason})") from None
    return pixels[:, :, None] if channels == 1 else pixels
