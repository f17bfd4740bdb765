from __future__ import annotations

import torch

from pipeline.models.bundle import Preprocess
from pipeline.models.constants import constant

CPU = torch.device("cpu")


def test_a_step_makes_no_constant_anew() -> None:
    """The host would wait for each copy to a GPU from memory that is not page-locked."""
    preprocess = Preprocess((0.1, 0.2), (0.3, 0.4), 2, (4, 4))
    preprocess.normalise(torch.zeros(1, 2, 4, 4, dtype=torch.uint8))
    made = constant.cache_info().misses
    preprocess.normalise(torch.zeros(3, 2, 8, 8, dtype=torch.uint8))
    assert constant.cache_info().misses == made
    assert constant((0.1, 0.2), CPU) is constant((0.1, 0.2), CPU)
