"""Predictions drawn over their images, beside the labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from pipeline.config.data import PlainConfig
from pipeline.images.class_map import class_colors, draw_classes
from pipeline.images.plain import spans
from pipeline.metrics.iou import full_labels
from pipeline.metrics.pictures import save_picture

MOST = 9  # images that are shown
SIDE, GAP, LINE = 220, 6, 18  # pixels: longest side of an image, space, height of a line of the legend
IN_A_LINE = 5  # classes in the legend


class Shown(NamedTuple):
    """One image at its own size."""

    image: np.ndarray  # uint8 [H, W, 3]
    labels: np.ndarray  # int [H, W], -1 where nothing is labelled
    predicted: np.ndarray  # int [H, W]


class Overlays:
    """A `Collector` of the first images of a data set."""

    def __init__(self, how: PlainConfig) -> None:
        self.how = how
        self.shown: dict[int, Shown] = {}  # by slot

    def add(self, predicted: Sequence[Tensor], batch: Any) -> None:
        """Keep those of the batch that are among the first and good."""
        labels = full_labels(batch.targets)
        for row, (slot, weight) in enumerate(zip(batch.slots.tolist(), batch.weights.tolist(), strict=True)):
            if weight and 0 <= slot < MOST:
                true, guess = labels[row].cpu().numpy(), predicted[row].cpu().numpy()
                view = batch.views["image"][row].permute(1, 2, 0).cpu().numpy()
                height, width = true.shape
                self.shown[slot] = Shown(at_full_size(view, (height, width), self.how), true, guess)

    def state(self) -> dict[int, Shown]:
        return self.shown

    def merge(self, state: dict[int, Shown]) -> None:
        self.shown |= state

    def measures(self) -> dict[str, float]:
        return {}

    def write(self, folder: Path, model: str, classes: Sequence[str]) -> None:
        """A picture of each: the image, what is labelled, what is predicted."""
        for slot, one in sorted(self.shown.items()):
            title = f"Segmentations by {model}: image, labels, prediction"
            save_picture(folder, f"segmentation-{model}-{slot:03d}", drawn(one, classes), title, f"image {slot}")


def at_full_size(view: np.ndarray, full: tuple[int, int], how: PlainConfig) -> np.ndarray:
    """uint8 [H, W, 3] of a view, uint8 [h, w, C]: what it shows, stretched back; what it does not show is black."""
    down, across = spans(full, view.shape[:2], how)
    seen = view[down.first : down.first + down.length, across.first : across.first + across.length]
    (top, bottom), (left, right) = ((round(axis.start), round(axis.stop)) for axis in (down, across))
    image = np.zeros((*full, 3), np.uint8)
    stretched = cv2.resize(seen, (right - left, bottom - top), interpolation=cv2.INTER_LINEAR)
    image[top:bottom, left:right] = stretched.reshape(bottom - top, right - left, -1)
    return image


def drawn(one: Shown, classes: Sequence[str]) -> Image.Image:
    """The image, its labels over it, and the prediction over it; below, the classes that occur."""
    parts = [
        Image.fromarray(part) for part in (one.image, *(overlay(one.image, m) for m in (one.labels, one.predicted)))
    ]
    width, height = [max(round(side * SIDE / max(parts[0].size)), 1) for side in parts[0].size]
    seen = np.union1d(one.labels, one.predicted)
    key = legend({number: classes[number] for number in seen[seen >= 0].tolist()}, 3 * (SIDE + GAP))
    drawing = Image.new("RGB", (key.width, height + GAP + key.height), "white")
    for place, part in enumerate(parts):
        drawing.paste(part.resize((width, height)), (place * (SIDE + GAP), 0))
    drawing.paste(key, (0, height + GAP))
    return drawing


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
