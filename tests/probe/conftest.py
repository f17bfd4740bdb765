from __future__ import annotations

import pytest
import torch

from pipeline.probe.rows import Rows

CLASSES, WIDTH = 4, 12


def make_rows(count: int, seed: int) -> Rows:
    """Features around the centres of their classes, which overlap."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(CLASSES, (count,), generator=generator)
    return Rows(0.5 * centres[labels] + torch.randn(count, WIDTH, generator=generator), labels)


@pytest.fixture
def train() -> Rows:
    return make_rows(400, 1)


@pytest.fixture
def test() -> Rows:
    return make_rows(150, 2)
