"""Predicted keypoints drawn beside the labelled ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from pipeline.config.data import PlainConfig
from pipeline.images.keypoints import VISIBLE, draw_keypoints
from pipeline.metrics.keypoints import Judged
from pipeline.metrics.pictures import save_picture
from pipeline.tasks._pictures import MOST, at_full_size, beside


class Shown(NamedTuple):
    """One image at its own size, and its instances."""

    image: np.ndarray  # uint8 [H, W, 3]
    instances: Judged


class FirstInstances:
    """A `Collector` of the first images."""

    def __init__(self, how: PlainConfig) -> None:
        self.how = how
        self.shown: dict[int, Shown] = {}  # by slot

    def add(self, predicted: Sequence[Judged], batch: Any) -> None:
        """Keep those of the batch that are among the first and good."""
        sizes = batch.targets["keypoints_size"].tolist()
        for row, (slot, weight) in enumerate(zip(batch.slots.tolist(), batch.weights.tolist(), strict=True)):
            if weight and 0 <= slot < MOST:
                view = batch.views["image"][row].permute(1, 2, 0).cpu().numpy()
                height, width = sizes[row]
                self.shown[slot] = Shown(at_full_size(view, (height, width), self.how), predicted[row])

    def state(self) -> dict[int, Shown]:
        return self.shown

    def merge(self, state: dict[int, Shown]) -> None:
        self.shown |= state

    def measures(self) -> dict[str, float]:
        return {}

    def write(self, folder: Path, model: str, classes: Sequence[str]) -> None:
        """A picture of each: the labelled keypoints, rings where they are hidden, and the predicted ones."""
        for slot, (image, found) in sorted(self.shown.items()):
            parts = image.copy(), image.copy()
            for truth, guess in zip(found.truth, found.predicted, strict=True):
                draw_keypoints(parts[0], truth[:, :2], truth[:, 2])
                draw_keypoints(parts[1], guess[:, :2], np.full(len(guess), VISIBLE))
            drawing = beside(parts, Image.new("RGB", (1, 1), "white"))
            save_picture(
                folder,
                f"keypoints-{model}-{slot:03d}",
                drawing,
                f"Keypoints by {model}: labelled, predicted",
                f"image {slot}",
            )
