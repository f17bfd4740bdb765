"""Predicted boxes drawn into their images, beside the labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from pipeline.config.data import PlainConfig
from pipeline.images.boxes import draw_boxes
from pipeline.metrics.average_precision import Found
from pipeline.metrics.pictures import save_picture
from pipeline.tasks._pictures import at_full_size

MOST = 9  # images that are shown
SIDE, GAP = 320, 6  # pixels: longest side of an image, space


class Boxes(NamedTuple):
    corners: np.ndarray  # float64 [n, 4], in pixels of the image
    labels: list[int]
    scores: list[float]  # none of labelled ones


class Shown(NamedTuple):
    """One image at its own size."""

    image: np.ndarray  # uint8 [H, W, 3]
    labelled: Boxes
    predicted: Boxes


class Outlines:
    """A `Collector` of the first images of a data set; predictions below a score are not drawn."""

    def __init__(self, how: PlainConfig, least: float) -> None:
        self.how, self.least = how, least
        self.shown: dict[int, Shown] = {}  # by slot

    def add(self, predicted: Sequence[Found], batch: Any) -> None:
        """Keep those of the batch that are among the first and good."""
        targets, offsets = batch.targets, batch.targets["boxes_full.offsets"].tolist()
        for row, (slot, weight) in enumerate(zip(batch.slots.tolist(), batch.weights.tolist(), strict=True)):
            if not weight or not 0 <= slot < MOST:
                continue
            own, one = slice(*offsets[row : row + 2]), predicted[row]
            labelled = Boxes(targets["boxes_full"][own].cpu().numpy(), targets["box_label"][own].tolist(), [])
            good = one.scores >= self.least
            found = Boxes(one.boxes[good].double().cpu().numpy(), one.labels[good].tolist(), one.scores[good].tolist())
            view = batch.views["image"][row].permute(1, 2, 0).cpu().numpy()
            height, width = targets["boxes_full_size"][row].tolist()
            self.shown[slot] = Shown(at_full_size(view, (height, width), self.how), labelled, found)

    def state(self) -> dict[int, Shown]:
        return self.shown

    def merge(self, state: Mapping[int, Shown]) -> None:
        self.shown |= state

    def measures(self) -> dict[str, float]:
        return {}

    def write(self, folder: Path, model: str, classes: Sequence[str]) -> None:
        """A picture of each: what is labelled, and what is predicted with its score."""
        for slot, one in sorted(self.shown.items()):
            title = f"Boxes by {model}: labels, prediction"
            save_picture(folder, f"boxes-{model}-{slot:03d}", drawn(one, classes), title, f"image {slot}")


def drawn(one: Shown, classes: Sequence[str]) -> Image.Image:
    """The image with its labels, and beside it with the prediction."""
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
