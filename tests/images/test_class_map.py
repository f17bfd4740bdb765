from __future__ import annotations

import contextlib
import struct
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.images.class_map import class_colors, decode_class_map, draw_classes, read_map_header
from pipeline.images.decode import BadImage

GREY, PALETTE = 0, 3


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(ids: np.ndarray, depth: int, color: int, more: bytes = b"") -> bytes:
    """A PNG of ids with this many bits each; `more` are chunks before its pixels."""
    height, width = ids.shape
    bits = np.unpackbits(ids.astype(">u2").view(np.uint8).reshape(height, width, 2), axis=2)[:, :, 16 - depth :]
    rows = np.packbits(bits.reshape(height, -1), axis=1)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    palette = chunk(b"PLTE", np.random.default_rng(0).bytes(3 << depth)) if color == PALETTE else b""
    pixels = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    return b"\x89PNG\r\n\x1a\n" + head + palette + more + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("color", "depths"), [(GREY, (1, 2, 4, 8, 16)), (PALETTE, (1, 2, 4, 8))])
def test_ids_are_as_stored_in_every_depth(color: int, depths: tuple[int, ...]) -> None:
    for depth in depths:
        ids = np.random.default_rng(0).integers(1 << depth, size=(13, 21))
        data = memoryview(png(ids, depth, color))
        assert read_map_header(data) == ((13, 21), depth, False)
        found = decode_class_map(data)
        np.testing.assert_array_equal(found, ids)
        assert found.dtype == (np.uint16 if depth == 16 else np.uint8)


def test_transparency_and_words_in_between_change_nothing() -> None:
    ids = np.arange(200, dtype=np.uint8).reshape(10, 20)
    more = chunk(b"tRNS", bytes(range(200))) + chunk(b"tEXt", b"Comment\0IDAT of sorts") + chunk(b"gAMA", b"\0\0\x20\0")
    np.testing.assert_array_equal(decode_class_map(png(ids, 8, PALETTE, more)), ids)


def test_filtered_and_interlaced_rows_are_decoded_too() -> None:
    ids = np.add.outer(np.arange(40), np.arange(50)).astype(np.uint8)
    for filters in (cv2.IMWRITE_PNG_FILTER_NONE, cv2.IMWRITE_PNG_FILTER_UP, cv2.IMWRITE_PNG_ALL_FILTERS):
        data = cv2.imencode(".png", ids, [cv2.IMWRITE_PNG_FILTER, filters])[1].tobytes()
        np.testing.assert_array_equal(decode_class_map(data), ids)
    interlaced = bytearray(png(np.zeros((1, 1), np.uint8), 8, GREY))
    interlaced[28] = 1
    interlaced[29:33] = struct.pack(">I", zlib.crc32(interlaced[12:29]))
    assert decode_class_map(bytes(interlaced)).tolist() == [[0]]


def test_what_is_no_class_map_is_told_by_its_name() -> None:
    colors = np.zeros((4, 4, 3), np.uint8)
    whole = png(np.arange(10_000).reshape(100, 100) % 251, 8, PALETTE)
    broken = bytearray(whole)
    broken[len(whole) // 2] ^= 255
    for data, reason in (
        (b"", "is empty, not a PNG"),
        (cv2.imencode(".jpg", colors)[1].tobytes(), "a JPEG, which blurs ids"),
        (cv2.imencode(".png", colors)[1].tobytes(), "the mask is RGB, not palette indices"),
        (cv2.imencode(".png", np.dstack([colors, colors[:, :, :1]]))[1].tobytes(), "RGB with transparency"),
        (whole[:20], "in another format"),
        (whole[: len(whole) // 2], "truncated or damaged"),
        (whole[:200], "truncated or damaged"),
        (whole[:40], "truncated or damaged"),
        (bytes(broken), "truncated or damaged"),
    ):
        with pytest.raises(BadImage, match=reason):
            decode_class_map(data)


def test_colours_differ_and_stay_when_classes_are_added() -> None:
    colors = class_colors(40)
    np.testing.assert_array_equal(colors[:9], class_colors(9))
    apart = np.linalg.norm(colors[:, None].astype(int) - colors[None], axis=-1) + 1000 * np.eye(len(colors))
    assert apart.min() > 12


@settings(max_examples=100)
@given(st.sampled_from([1, 8, 16]), st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), max_size=4))
def test_damage_ends_in_ids_or_in_a_reason(depth: int, changes: list[tuple[int, int]]) -> None:
    data = bytearray(png(np.arange(600).reshape(20, 30) % (1 << depth), depth, GREY))
    for place, byte in changes:
        data[33 + place % (len(data) - 33)] = byte  # behind the size, by which decoding may take long
    with contextlib.suppress(BadImage):
        assert decode_class_map(bytes(data)).ndim == 2


def test_ignored_pixels_are_not_painted() -> None:
    picture = np.full((2, 2, 3), 100, np.uint8)
    draw_classes(picture, np.array([[0, 3], [3, -1]], np.int8))
    assert (picture[1, 1] == 100).all()
    assert (picture[0, 1] == picture[1, 0]).all()
    assert (picture[0, 0] != picture[0, 1]).any()
    draw_classes(picture, np.full((2, 2), -1, np.int8))
