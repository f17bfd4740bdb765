"""Loader of logged models for `mlflow.pyfunc.load_model`; the model's files refer to it by its module name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline import load_model
from pipeline.errors import ModelError


class PyfuncModel:
    """`predict(images)`: uint8 [N, H, W, C] of any size, or a mapping with `images` -> the task's predictions.

    Maps, such as those of classes or depth, are one array [N, H, W]; any others are a list with one for each image.
    """

    def __init__(self, model: Any) -> None:
        self.model = model

    def predict(self, images: Any, params: Mapping[str, Any] | None = None) -> Any:
        """Predict; `params` are options of the task's predictions, such as `top_k`; lists are JSON texts.

        Raises ModelError for an invalid option, or if the task predicts nothing about images.
        """
        pixels = np.asarray(images["images"] if isinstance(images, Mapping) else images)
        options = {name: _option(name, value) for name, value in (params or {}).items() if value is not None}
        predicted = self.model.predict(list(pixels), **options)
        return np.stack(predicted) if predicted and isinstance(predicted[0], np.ndarray) else predicted


def _option(name: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        raise ModelError(f"predict: {name} is {value!r}, which is not JSON; give json.dumps(VALUE)") from None


def _load_pyfunc(path: str) -> PyfuncModel:
    return PyfuncModel(load_model(path))
