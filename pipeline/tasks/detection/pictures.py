"""Predicted boxes drawn on their images, next to the labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from pipeline.config.data import PlainConfig
from pipeline.images.boxes import draw_boxes
from pipeline.metrics.average_precision import PredictedBoxes
from pipeline.tasks._pictures import GAP, FirstPictures

SIDE = 320  # pixels: longest side of an image


class DrawnBoxes(NamedTuple):
    corners: np.ndarray  # float64 [n, 4], in pixels of the image
    labels: list[int]
    scores: list[float]  # empty for labels


class DetectionExample(NamedTuple):
    """One image at its own size."""

    image: np.ndarray  # uint8 [H, W, 3]
    labelled: DrawnBoxes
    predicted: DrawnBoxes


class Outlines(FirstPictures):
    """Labelled boxes, and predicted boxes with their scores; predictions below a minimum score are not drawn."""

    name, title = "boxes", "Boxes by {model}: labels, prediction"

    def __init__(self, how: PlainConfig, least: float) -> None:
        super().__init__(how)
        self.least = least

    def kept(self, predicted: PredictedBoxes, batch: Any, row: int) -> DetectionExample:
        targets, good = batch.targets, predicted.scores >= self.least
        own = slice(*targets["boxes_full.offsets"][row : row + 2].tolist())
        labelled = DrawnBoxes(targets["boxes_full"][own].cpu().numpy(), targets["box_label"][own].tolist(), [])
        boxes, scores, labels = predicted.boxes[good], predicted.scores[good], predicted.labels[good]
        found = DrawnBoxes(boxes.double().cpu().numpy(), labels.tolist(), scores.tolist())
        height, width = targets["boxes_full_size"][row].tolist()
        return DetectionExample(self.image(batch, row, (height, width)), labelled, found)

    def drawn(self, one: DetectionExample, classes: Sequence[str]) -> Image.Image:
        return drawn(one, classes)


def drawn(one: DetectionExample, classes: Sequence[str]) -> Image.Image:
    """The image with its labels, next to the image with the prediction."""
    height, width = one.image.shape[:2]
    scale = SIDE / max(height, width)
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    drawing = Image.new("RGB", (2 * size[0] + GAP, size[1]), "white")
    for place, found in enumerate((one.labelled, one.predicted)):
        picture = np.array(Image.fromarray(one.image).resize(size))
        captions = [
            classes[label] + (f" {found.scores[row]:.2f}" if found.scores else "")
            for row, label in enumerate(found.labels)
        ]
        draw_boxes(picture, found.corners * scale, found.labels, captions)
        drawing.paste(Image.fromarray(picture), (place * (size[0] + GAP), 0))
    return drawing
