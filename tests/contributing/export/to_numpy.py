"""Weights as NumPy arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.files import write_whole
from pipeline.models.bundle import Bundle

LIBRARY = "numpy"
USE = 'weights = numpy.load("{folder}/weights.npz")'


def write(bundle: Bundle, folder: Path) -> Path:
    """Write `folder/weights.npz`; returns its path."""
    arrays = {name: tensor.float().numpy() for name, tensor in bundle.state.items()}
    return write_whole(folder / "weights.npz", lambda path: np.savez(path.open("wb"), **arrays))


def notes(bundle: Bundle) -> list[str]:
    return ["The architecture."]
