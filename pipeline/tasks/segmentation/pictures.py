"""Predictions drawn over their images, beside the labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw

from pipeline.images.class_map import class_colors, draw_classes
from pipeline.tasks._pictures import GAP, SIDE, FirstMaps, Shown, beside

LINE = 18  # pixels: height of a line of the legend
IN_A_LINE = 5  # classes in the legend


class Overlays(FirstMaps):
    """Labels are -1 where there is none."""

    field, name = "mask_full", "segmentation"
    title = "Segmentations by {model}: image, labels, prediction"

    def drawn(self, one: Shown, classes: Sequence[str]) -> Image.Image:
        return drawn(one, classes)


def drawn(one: Shown, classes: Sequence[str]) -> Image.Image:
    """The image, its labels over it, and the prediction over it; below, the classes that occur."""
    seen = np.union1d(one.labels, one.predicted)
    key = legend({number: classes[number] for number in seen[seen >= 0].tolist()}, 3 * (SIDE + GAP))
    return beside([one.image, *(overlay(one.image, classes) for classes in (one.labels, one.predicted))], key)


def overlay(image: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3]: the image under the colours of its class map, int [H, W]; pixels of -1 stay as they are."""
    painted = image.copy()
    draw_classes(painted, classes)
    return painted


def legend(names: Mapping[int, str], width: int) -> Image.Image:
    """Classes' names beside their colours."""
    drawing = Image.new("RGB", (width, -(-len(names) // IN_A_LINE) * LINE), "white")
    draw = ImageDraw.Draw(drawing)
    palette = class_colors(max(names, default=-1) + 1).tolist()
    for place, (number, name) in enumerate(names.items()):
        top, left = place // IN_A_LINE * LINE, place % IN_A_LINE * (width // IN_A_LINE)
        draw.rectangle((left, top, left + LINE - 6, top + LINE - 6), fill=tuple(palette[number]))
        draw.text((left + LINE, top), name, fill="black")
    return drawing
