"""Loader of logged models for `mlflow.pyfunc.load_model`, which finds it by the name in the model's files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline import load_model


class PyfuncModel:
    """`predict(images)`: uint8 [N, H, W, C] of any size, or a mapping with `images` -> list of task predictions."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def predict(self, images: Any, params: Mapping[str, Any] | None = None) -> list[Any]:
        """Predict; `params` are options of the task's predictions, such as `top_k`."""
        from PIL import Image

        pixels = np.asarray(images["images"] if isinstance(images, Mapping) else images, np.uint8)
        pictures = [Image.fromarray(one[:, :, 0] if one.shape[2] == 1 else one) for one in pixels]
        predicted: list[Any] = self.model.predict(pictures, **(params or {}))
        return predicted


def _load_pyfunc(path: str) -> PyfuncModel:
    return PyfuncModel(load_model(path))
