"""Predicted keypoints drawn next to the labelled ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from pipeline.images.keypoints import draw_keypoints
from pipeline.metrics.keypoints import VISIBLE, ImageInstances
from pipeline.tasks._pictures import FirstPictures, side_by_side


class KeypointExample(NamedTuple):
    """One image at its own size, and its instances."""

    image: np.ndarray  # uint8 [H, W, 3]
    instances: ImageInstances


class FirstInstances(FirstPictures):
    """Labelled keypoints, with rings for hidden ones, and predicted keypoints."""

    name, title = "keypoints", "Keypoints by {model}: labelled, predicted"

    def kept(self, predicted: ImageInstances, batch: Any, row: int) -> KeypointExample:
        height, width = batch.targets["keypoints_size"][row].tolist()
        return KeypointExample(self.image(batch, row, (height, width)), predicted)

    def drawn(self, one: KeypointExample, classes: Sequence[str]) -> Image.Image:
        parts = one.image.copy(), one.image.copy()
        for truth, guess in zip(one.instances.truth, one.instances.predicted, strict=True):
            draw_keypoints(parts[0], truth[:, :2], truth[:, 2])
            draw_keypoints(parts[1], guess[:, :2], np.full(len(guess), VISIBLE))
        return side_by_side(parts, Image.new("RGB", (1, 1), "white"))
