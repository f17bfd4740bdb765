"""Pictures of a task's predictions for the first images of a data set, next to the labels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import cv2
import numpy as np
from PIL import Image
from torch import Tensor

from pipeline.config.data import PlainConfig
from pipeline.images.plain import spans
from pipeline.metrics.full_maps import full_maps
from pipeline.metrics.pictures import save_picture
from pipeline.models.spec import Pair

MOST = 9  # images to show
SIDE, GAP = 220, 6  # pixels: longest side of an image, space between images


class MapExample(NamedTuple):
    """One image at its own size."""

    image: np.ndarray  # uint8 [H, W, 3]
    labels: np.ndarray  # [H, W], as packed by the target
    predicted: np.ndarray  # [H, W]


class FirstPictures(ABC):
    """A `Collector` that draws the first images of a data set; subclasses define what to keep of one and draw it."""

    name: ClassVar[str]  # prefix of the file names
    title: ClassVar[str]  # of the pictures, with `{model}` for the model's name

    def __init__(self, how: PlainConfig) -> None:
        self.how = how
        self.shown: dict[int, Any] = {}  # by slot

    def add(self, predicted: Sequence[Any], batch: Any) -> None:
        """Keep the batch's good samples that are among the first of the data set."""
        for row, (slot, weight) in enumerate(zip(batch.slots.tolist(), batch.weights.tolist(), strict=True)):
            if weight and 0 <= slot < MOST:
                self.shown[slot] = self.kept(predicted[row], batch, row)

    def image(self, batch: Any, row: int, full: Pair) -> np.ndarray:
        """uint8 [H, W, 3]: a view of the batch at the image's own size."""
        return at_full_size(batch.views["image"][row].permute(1, 2, 0).cpu().numpy(), full, self.how)

    def state(self) -> dict[int, Any]:
        return self.shown

    def merge(self, state: Mapping[int, Any]) -> None:
        self.shown |= state

    def measures(self) -> dict[str, float]:
        return {}

    def write(self, folder: Path, model: str, classes: Sequence[str]) -> None:
        """Write a picture of each kept image with its labels and prediction."""
        for slot, one in sorted(self.shown.items()):
            title = self.title.format(model=model)
            save_picture(folder, f"{self.name}-{model}-{slot:03d}", self.drawn(one, classes), title, f"image {slot}")

    @abstractmethod
    def kept(self, predicted: Any, batch: Any, row: int) -> Any:
        """Data needed to draw one image."""

    @abstractmethod
    def drawn(self, one: Any, classes: Sequence[str]) -> Image.Image:
        """The picture of one kept image."""


class FirstMaps(FirstPictures):
    """For tasks that predict maps; `field` is the ragged field with the labels."""

    field: ClassVar[str]

    def kept(self, predicted: Tensor, batch: Any, row: int) -> MapExample:
        labels = full_maps(batch.targets, self.field)[row].cpu().numpy()
        height, width = labels.shape
        return MapExample(self.image(batch, row, (height, width)), labels, predicted.cpu().numpy())


def at_full_size(view: np.ndarray, full: tuple[int, int], how: PlainConfig) -> np.ndarray:
    """Stretch a view, uint8 [h, w, C], back to full size, uint8 [H, W, 3]; parts outside the view are black."""
    down, across = spans(full, view.shape[:2], how)
    seen = view[down.first : down.first + down.length, across.first : across.first + across.length]
    (top, bottom), (left, right) = ((round(axis.start), round(axis.stop)) for axis in (down, across))
    image = np.zeros((*full, 3), np.uint8)
    stretched = cv2.resize(seen, (right - left, bottom - top), interpolation=cv2.INTER_LINEAR)
    image[top:bottom, left:right] = stretched.reshape(bottom - top, right - left, -1)
    return image


def side_by_side(parts: Sequence[np.ndarray], below: Image.Image) -> Image.Image:
    """Images of equal size, uint8 [H, W, 3], side by side at SIDE pixels, with `below` underneath."""
    full_height, full_width = parts[0].shape[:2]
    width, height = (max(round(side * SIDE / max(full_width, full_height)), 1) for side in (full_width, full_height))
    drawing = Image.new("RGB", (max(below.width, len(parts) * (SIDE + GAP)), height + GAP + below.height), "white")
    for place, part in enumerate(parts):
        drawing.paste(Image.fromarray(part).resize((width, height)), (place * (SIDE + GAP), 0))
    drawing.paste(below, (0, height + GAP))
    return drawing
