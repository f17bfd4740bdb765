"""Class maps: PNG files whose palette indices or grey values are class ids; and the colours to draw them in."""

from __future__ import annotations

import contextlib
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np

from pipeline.images.decode import MAX_PIXELS, BadImage, Data, Pixels
from pipeline.images.geometry import Size

SIGNATURE = b"\x89PNG\r\n\x1a\n"
HEADER = struct.Struct(">IIBB2xB")  # width, height, depth, colour type, interlacing
HEADER_AT = 16
COLOR_AT = HEADER_AT + 9
GREY = 0
COLORS = {2: "RGB", 4: "grey with transparency", 6: "RGB with transparency"}
TO_FULL_RANGE = {1: 255, 2: 85, 4: 17}  # bits per id: the factor by which decoders scale grey values
OPACITY = 0.55  # of a class map drawn over a picture
BEHIND = 70
GOLDEN = 0.618034  # hue steps of the golden ratio spread evenly for any number of classes


class MapHeader(NamedTuple):
    size: Size
    depth: int  # bits per id
    interlaced: bool


def read_map_header(data: Data) -> MapHeader:
    """Size and depth of a class map, without decoding it. Raises BadImage if it is not one."""
    start = bytes(data[:HEADER_AT])
    if not start.startswith(SIGNATURE) or not start.endswith(b"IHDR") or len(data) < HEADER_AT + HEADER.size:
        raise BadImage(f"the mask is {_what(start)}, not a PNG whose palette indices or grey values are class ids")
    width, height, depth, color, interlaced = HEADER.unpack_from(data, HEADER_AT)
    if color in COLORS:
        raise BadImage(f"the mask is {COLORS[color]}, not palette indices or grey values that are class ids")
    if width * height > MAX_PIXELS:
        raise BadImage(f"the mask has {width} x {height} pixels, more than {MAX_PIXELS}")
    return MapHeader((height, width), depth, bool(interlaced))


def decode_class_map(data: Data) -> np.ndarray:
    """Class ids [height, width], uint8, or uint16 if 16-bit; the array may be read-only. Raises BadImage."""
    header, whole = read_map_header(data), bytes(data)
    ids = _unfiltered(whole, header)
    if ids is None:
        with contextlib.suppress(cv2.error):
            ids = cv2.imdecode(np.frombuffer(_without_palette(whole), np.uint8), cv2.IMREAD_UNCHANGED)
            ids = ids if header.depth not in TO_FULL_RANGE or ids is None else ids // TO_FULL_RANGE[header.depth]
    if ids is None or ids.shape != header.size:
        raise BadImage("the mask is truncated or damaged")
    return ids


def draw_classes(picture: Pixels, classes: np.ndarray) -> None:
    """Blends class colours into an RGB picture, in place, where `classes` [height, width] is not negative."""
    seen = classes >= 0
    colors = class_colors(int(classes.max(where=seen, initial=0)) + 1)
    picture[seen] = (picture[seen] * (1 - OPACITY) + colors[classes[seen]] * OPACITY).round()


def class_colors(count: int) -> Pixels:
    """Distinct class colours, uint8 [count, 3]; the colour of a class does not depend on `count`.

    Class 0, usually the background, is dark grey.
    """
    classes = np.arange(count)
    hue = (classes * GOLDEN % 1)[:, None] * 6
    saturation, value = 1 - classes % 2 * 0.35, 1 - classes % 3 * 0.25
    distance = (np.array([5, 3, 1]) + hue) % 6  # of red, green, blue
    share = np.minimum(distance, 4 - distance).clip(0, 1)
    colors = (255 * value[:, None] * (1 - saturation[:, None] * share)).round().astype(np.uint8)
    colors[:1] = BEHIND
    return colors


def _unfiltered(data: bytes, header: MapHeader) -> np.ndarray | None:
    """Ids of an 8-bit PNG whose rows are unfiltered, as palette images usually are; None for all others.

    Takes half the time of OpenCV's decoder, which inspects every row.
    """
    if header.depth != 8 or header.interlaced:
        return None
    height, width = header.size
    pixels = b"".join(data[at + 8 : end] for at, end, name in _chunks(data) if name == b"IDAT")
    unpacked = zlib.decompressobj()
    try:
        rows = unpacked.decompress(pixels, height * (width + 1))
        unpacked.decompress(unpacked.unconsumed_tail, 1)  # reads the trailing checksum, which zlib verifies
    except zlib.error:
        return None
    if not unpacked.eof or len(rows) != height * (width + 1):
        return None
    ids = np.frombuffer(rows, np.uint8).reshape(height, width + 1)
    return None if ids[:, 0].any() else ids[:, 1:]


def _without_palette(data: bytes) -> bytes:
    """The file as a grey PNG without its palette: decoders would replace palette indices with colours."""
    header = bytearray(data[HEADER_AT - 4 : HEADER_AT + 13])
    header[COLOR_AT - HEADER_AT + 4] = GREY
    pixels = next((at for at, _, name in _chunks(data) if name == b"IDAT"), len(data))
    return data[: HEADER_AT - 4] + header + struct.pack(">I", zlib.crc32(header)) + data[pixels:]


def _chunks(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yields start, end of content and name of each chunk of a PNG."""
    at = len(SIGNATURE)
    while at + 8 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        yield at, end, data[at + 4 : at + 8]
        at = end + 4


def _what(start: bytes) -> str:
    if not start:
        return "empty"
    return "a JPEG, which blurs ids" if start.startswith(b"\xff\xd8\xff") else "in another format"
