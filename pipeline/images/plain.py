"""A whole image at a model's input size, without randomness: for evaluation, prediction and pictures of them.

Sizes and crops match timm's evaluation transform, and pixels match Pillow, with which timm, torchvision and
transformers resize; `auto` is faster and differs from them slightly.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image

from pipeline.config.data import SQUASH, Color, PlainConfig
from pipeline.images.decode import Data, Pixels, read_header
from pipeline.images.geometry import Box, Geometry, Size, Trail, cropped, placed
from pipeline.images.load import load_box, resize

# Radius of each filter, in pixels of the coarser of the two images.
REACH = {"nearest": 0.5, "box": 0.5, "bilinear": 1.0, "hamming": 1.0, "bicubic": 2.0, "lanczos": 3.0}

Cut = Callable[[Box, Size], Pixels]  # a box of the image at a size


class AxisSpan(NamedTuple):
    """The visible part of one axis: image pixels `start` to `stop`, shown as `length` output pixels from `first` on."""

    start: float
    stop: float
    first: int
    length: int


def load_plain(
    data: Data,
    size: Size,
    channels: int,
    background: Color,
    how: PlainConfig = SQUASH,
    trail: Trail | None = None,
) -> Pixels:
    """Loads an image file at `size`, uint8 [height, width, channels]; raises BadImage."""
    header = read_header(data)

    def cut(box: Box, to: Size) -> Pixels:
        return load_box(data, header, box, to, channels, background, exact=True, trail=trail)

    return _render(cut, (header.height, header.width), size, channels, background, how, trail)


def plain(pixels: Pixels, size: Size, background: Color, how: PlainConfig = SQUASH) -> Pixels:
    """Like `load_plain`, for a decoded image, uint8 [height, width, channels]."""

    def cut(box: Box, to: Size) -> Pixels:
        return resize(pixels[box.top : box.top + box.height, box.left : box.right], to)

    return _render(cut, pixels.shape[:2], size, pixels.shape[2], background, how)


def geometry(full: Size, size: Size, how: PlainConfig) -> Geometry:
    """The map from an image of size `full` to what `plain` shows of it at `size`.

    `load_plain` may decode a JPEG at reduced scale; its crop for `auto` then extends up to 7 image pixels further, as
    its `trail` records.
    """
    down, across = spans(full, size, how)
    seen = down.start, across.start, down.stop - down.start, across.stop - across.start
    shown = cropped(full, seen, (down.length, across.length))
    return shown.then(placed(shown.size, down.first, across.first, size))


def spans(full: Size, size: Size, how: PlainConfig) -> tuple[AxisSpan, AxisSpan]:
    """The visible spans of an image of size `full` at `size`, down and across.

    The image is resized by `how.resize` to `size / how.crop_pct`, rounded down, and its centre is cropped; if that is
    too small, the rest is background.
    """
    scaled = [math.floor(side / how.crop_pct) for side in size]
    if how.resize == "squash":
        resized = scaled
    else:
        ratios = [was / side for was, side in zip(full, scaled, strict=True)]
        ratio = min(ratios) if how.resize == "shorter" else max(ratios)
        # For squares, timm uses torchvision, which rounds the longer side down.
        rounded = int if how.resize == "shorter" and scaled[0] == scaled[1] else round
        resized = [
            side if one == ratio else max(rounded(was / ratio), 1)
            for was, side, one in zip(full, scaled, ratios, strict=True)
        ]
    down, across = (_span(*axis, whole=how.interpolation == "auto") for axis in zip(full, resized, size, strict=True))
    return down, across


def _span(full: int, resized: int, side: int, *, whole: bool) -> AxisSpan:
    """The centre of an axis resized to `resized`; `whole` extends it to whole pixels of the image."""
    cut_off = round((resized - side) / 2) if resized >= side else -((side - resized) // 2)
    first, stop = max(cut_off, 0), min(cut_off + side, resized)
    edges = first * full / resized, stop * full / resized
    if whole:
        edges = math.floor(edges[0]), math.ceil(edges[1])
    return AxisSpan(*edges, first - cut_off, stop - first)


def _render(
    cut: Cut, full: Size, size: Size, channels: int, background: Color, how: PlainConfig, trail: Trail | None = None
) -> Pixels:
    down, across = spans(full, size, how)
    if how.interpolation == "auto":
        top, left = int(down.start), int(across.start)
        box = Box(top, left, int(down.stop) - top, int(across.stop) - left)
        shown = cut(box, (down.length, across.length))
    else:
        shown = _resampled(cut, full, down, across, how.interpolation, trail)
    if trail is not None:
        trail.add(placed(shown.shape[:2], down.first, across.first, size))
    if shown.shape[:2] == size:
        return shown
    ground = Image.new("RGB", size[::-1], background).convert("L" if channels == 1 else "RGB")
    out = np.array(ground).reshape(*size, channels)
    out[down.first : down.first + down.length, across.first : across.first + across.length] = shown
    return out


def _resampled(
    cut: Cut, full: Size, down: AxisSpan, across: AxisSpan, interpolation: str, trail: Trail | None
) -> Pixels:
    """Resizes the visible part with Pillow; decodes no more of the image than the filter reaches."""
    reached = []
    for axis, side in zip((down, across), full, strict=True):
        reach = REACH[interpolation] * max((axis.stop - axis.start) / axis.length, 1)
        reached.append((max(math.floor(axis.start - reach), 0), min(math.ceil(axis.stop + reach), side)))
    (top, bottom), (left, right) = reached
    part = cut(Box(top, left, bottom - top, right - left), (bottom - top, right - left))
    image = Image.fromarray(part[:, :, 0] if part.shape[2] == 1 else part)
    edges = across.start - left, down.start - top, across.stop - left, down.stop - top
    out = image.resize((across.length, down.length), Image.Resampling[interpolation.upper()], box=edges)
    if trail is not None:
        seen = down.start - top, across.start - left, down.stop - down.start, across.stop - across.start
        trail.add(cropped(part.shape[:2], seen, (down.length, across.length)))
    return np.array(out).reshape(down.length, across.length, part.shape[2])
