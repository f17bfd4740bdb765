from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def encode() -> Callable[..., bytes]:
    """`encode(pixels, format="PNG", **options)`: an image file as Pillow writes it."""

    def write(pixels: np.ndarray, format: str = "PNG", **options: object) -> bytes:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, format, **options)
        return file.getvalue()

    return write
