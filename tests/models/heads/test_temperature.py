from __future__ import annotations

import math

import pytest
import torch

from pipeline.errors import ModelError
from pipeline.models.heads.temperature.module import Temperature
from pipeline.models.model_spec import ModelSpec
from pipeline.models.spec import HeadSpec
from pipeline.models.variants import build_backbone

OPTIONS = {"scale": 10.0, "most": 100.0}


def test_it_starts_as_asked() -> None:
    assert {k: round(v.item(), 4) for k, v in Temperature(HeadSpec("temperature", 0, OPTIONS))().items()} == {
        "scale": 10
    }
    both = Temperature(HeadSpec("temperature", 0, {**OPTIONS, "bias": -10.0}))()
    assert {name: round(value.item(), 4) for name, value in both.items()} == {"scale": 10, "bias": -10}


@pytest.mark.parametrize(
    ("start", "upwards", "moves"),
    [(1000.0, True, False), (1000.0, False, True), (0.5, False, False), (0.5, True, True), (50.0, True, True)],
)
def test_a_bound_holds_and_lets_go(start: float, upwards: bool, moves: bool) -> None:
    """A scale outside its bounds returns by its own gradient and moves no further away."""
    head = Temperature(HeadSpec("temperature", 0, OPTIONS))
    with torch.no_grad():
        head.logit_scale.fill_(math.log(start))
    scale = head()["scale"]
    assert scale.item() == pytest.approx(min(max(start, 1), 100), rel=1e-5)
    (-scale if upwards else scale).backward()
    assert bool(head.logit_scale.grad.any()) == moves


def test_a_start_beyond_the_bound_is_refused() -> None:
    with pytest.raises(ModelError, match="temperature: found an initial scale of 200, expected 1 to 100"):
        ModelSpec(build_backbone("nano", image_size=8), {"t": HeadSpec("temperature", 0, {**OPTIONS, "scale": 200})})
