"""A test double of torch with GPUs."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def fake_torch(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Two GPUs, as `pipeline.train.streams` sees them; see `cuda_double.py`."""
    double = runpy.run_path(str(Path(__file__).with_name("cuda_double.py")))["Torch"]()
    monkeypatch.setattr("pipeline.train.streams.torch", double)
    return double
