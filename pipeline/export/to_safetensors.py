"""This package's own format: a bundle folder, for `pipeline.load_model`."""

from __future__ import annotations

from pathlib import Path

from pipeline.models.bundle import Bundle

LIBRARY: str | None = None
USE = """```python
from pipeline import load_model  # pip install minivit-pipeline

model = load_model("{folder}")
model.predict(["image.png"])
```"""


def write(bundle: Bundle, folder: Path) -> Path:
    """Write `folder/model.safetensors` and `folder/model.json`; returns the folder."""
    return bundle.save(folder)


def notes(bundle: Bundle) -> list[str]:
    """What the format cannot express: nothing."""
    return []
