"""Predictions drawn over their images, beside the labels."""

from __future__ import annotations

from collections.abc import Sequence
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

MOST = 12  # images that are shown
SIDE, GAP, LINE = 160, 8, 18  # pixels: longest side of a picture, space, height of a line of the legend
IN_A_LINE = 4  # classes in the legend
TITLE = "Segmentations"


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
        """One sheet: the image, what is labelled, what is predicted; and what the colours mean."""
        if self.shown:
            shown = [self.shown[slot] for slot in sorted(self.shown)]
            caption = f"{model}: each image, its labels, and the prediction"
            save_picture(folder, f"segmentation-{model}", sheet(shown, classes), TITLE, caption)


def at_full_size(view: np.ndarray, full: tuple[int, int], how: PlainConfig) -> np.ndarray:
    """uint8 [H, W, 3] of a view, uint8 [h, w, C]: what it shows, stretched back; what it does not show is black."""
    down, across = spans(full, view.shape[:2], how)
    seen = view[down.first : down.first + down.length, across.first : across.first + across.length]
    (top, bottom), (left, right) = ((round(axis.start), round(axis.stop)) for axis in (down, across))
    image = np.zeros((*full, 3), np.uint8)
    stretched = cv2.resize(seen, (right - left, bottom - top), interpolation=cv2.INTER_LINEAR)
    image[top:bottom, left:right] = stretched.reshape(bottom - top, right - left, -1)
    return image


def overlay(image: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3]: the image under the colours of its class map, int [H, W]; pixels of -1 stay as they are."""
    drawn = image.copy()
    draw_classes(drawn, classes)
    return drawn


def sheet(shown: Sequence[Shown], classes: Sequence[str]) -> Image.Image:
    """Two images in a row, each with its labels and its prediction, above what the colours mean."""
    cell, half = SIDE + GAP, 3 * (SIDE + GAP) + GAP
    rows = -(-len(shown) // 2)
    key = legend(classes, 2 * half)
    drawing = Image.new("RGB", (2 * half, rows * cell + key.height), "white")
    for number, one in enumerate(shown):
        parts = one.image, overlay(one.image, one.labels), overlay(one.image, one.predicted)
        for place, part in enumerate(parts):
            picture = Image.fromarray(part)
            picture = picture.resize([max(round(side * SIDE / max(picture.size)), 1) for side in picture.size])
            drawing.paste(picture, (number % 2 * half + place * cell, number // 2 * cell))
    drawing.paste(key, (0, rows * cell))
    return drawing


def legend(classes: Sequence[str], width: int) -> Image.Image:
    """The classes' names beside their colours."""
    lines = -(-len(classes) // IN_A_LINE)
    drawing = Image.new("RGB", (width, lines * LINE), "white")
    draw = ImageDraw.Draw(drawing)
    for number, (name, colour) in enumerate(zip(classes, class_colors(len(classes)).tolist(), strict=True)):
        top, left = number // IN_A_LINE * LINE, number % IN_A_LINE * (width // IN_A_LINE)
        draw.rectangle((left, top, left + LINE - 6, top + LINE - 6), fill=tuple(colour))
        draw.text((left + LINE, top), name, fill="black")
    return drawing
