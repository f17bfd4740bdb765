"""Predictions drawn over their images, next to the labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw

from pipeline.images.class_map import class_colors, draw_classes
from pipeline.tasks._pictures import GAP, SIDE, FirstMaps, MapExample, side_by_side

LINE = 18  # pixels: height of a line of the legend
IN_A_LINE = 5  # classes in the legend


class Overlays(FirstMaps):
    """Overlays of class maps; -1 marks unlabelled pixels."""

    field, name = "mask_full", "segmentation"
    title = "Segmentations by {model}: image, labels, prediction"

    def drawn(self, one: MapExample, classes: Sequence[str]) -> Image.Image:
        return drawn(one, classes)


def drawn(one: MapExample, classes: Sequence[str]) -> Image.Image:
    """The image, the image with labels, and the image with the prediction; below, a legend of occurring classes."""
    seen = np.union1d(one.labels, one.predicted)
    key = legend({number: classes[number] for number in seen[seen >= 0].tolist()}, 3 * (SIDE + GAP))
    return side_by_side([one.image, *(overlay(one.image, classes) for classes in (one.labels, one.predicted))], key)


def overlay(image: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3]: the image overlaid with the colours of its class map, int [H, W]; -1 stays uncoloured."""
    painted = image.copy()
    draw_classes(painted, classes)
    return painted


def legend(names: Mapping[int, str], width: int) -> Image.Image:
    """A legend with the name and colour of each class."""
    drawing = Image.new("RGB", (width, -(-len(names) // IN_A_LINE) * LINE), "white")
    draw = ImageDraw.Draw(drawing)
    palette = class_colors(max(names, default=-1) + 1).tolist()
    for place, (number, name) in enumerate(names.items()):
        top, left = place // IN_A_LINE * LINE, place % IN_A_LINE * (width // IN_A_LINE)
        draw.rectangle((left, top, left + LINE - 6, top + LINE - 6), fill=tuple(palette[number]))
        draw.text((left + LINE, top), name, fill="black")
    return drawing
