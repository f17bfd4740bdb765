"""Text on pictures: lines on a dark background in the upper left corner, clipped at the picture's edge."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipeline.images.decode import Pixels

WHITE = (255, 255, 255)
SMALLEST, LARGEST, SHARE = 8, 20, 20  # line height: limits in pixels, and divisor of the shorter side
GROUND = 0.35  # factor of the picture's brightness behind text

Color = tuple[int, int, int]


def write_lines(picture: Pixels, lines: Sequence[str], colors: Sequence[Color] = ()) -> Pixels:
    """The picture, uint8 [H, W, 3], with lines of text, each after a square of its colour if there are any.

    Lines that would cover more than half of the height are left out, except the first.
    """
    height, width = picture.shape[:2]
    size = min(max(min(height, width) // SHARE, SMALLEST), LARGEST)
    step, pad = size + size // 4, size // 4
    lines = lines[: max((height // 2 - pad) // step, 1)]
    if not lines:
        return picture
    font, square = _font(size), step if colors else 0
    needed = max(font.getlength(line) for line in lines) + square + 2 * pad
    ground = picture[: len(lines) * step + pad, : round(min(needed, width))]
    written = picture.copy()
    written[: ground.shape[0], : ground.shape[1]] = (ground * GROUND).round()
    image = Image.fromarray(written)
    pen = ImageDraw.Draw(image)
    for row, line in enumerate(lines):
        top = pad // 2 + row * step
        if colors:
            pen.rectangle((pad, top + pad, pad + size - pad, top + size), fill=tuple(colors[row]))
        pen.text((pad + square, top), line, fill=WHITE, font=font)
    return np.asarray(image)


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
