"""A moving teacher by itself; with engines on several ranks it is in `test_tasks.py`."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline.models.bundle import Preprocess
from pipeline.models.minivit import MiniViT
from pipeline.models.variants import build_backbone
from pipeline.tasks.simdino import Task
from pipeline.tasks.simdino.module import SimDINO
from pipeline.train.flats import replicated_flats
from pipeline.train.teacher import MovingTeacher

STEPS = 10


@pytest.fixture
def made() -> tuple[SimDINO, MovingTeacher]:
    """A task and the teacher that follows its model, on an engine without ZeRO."""
    task = Task(momentum=0.9)
    backbone = build_backbone("nano", image_size=8, channels=1, depth=1, embed_dim=16, num_heads=1, positions="sincos")
    module = task.module(MiniViT.from_spec(task.model_spec(backbone, 0)), [], Preprocess((0.5,), (0.5,), 1, (8, 8)))
    assert isinstance(module, SimDINO)
    optimizer = torch.optim.SGD(module.model.parameters(), lr=1.0)
    engine: Any = SimpleNamespace(flats=replicated_flats(module.model, optimizer), zero_stage=0, model=module.model)
    return module, MovingTeacher(engine, module, STEPS)


def test_momentum_rises_to_1_along_a_cosine(made: tuple[SimDINO, MovingTeacher]) -> None:
    _, teacher = made
    momenta = [teacher.momentum_at(step) for step in range(1, STEPS + 1)]
    assert momenta[0] == pytest.approx(0.9)
    assert momenta[-1] == pytest.approx(1.0)
    assert momenta == sorted(momenta)
    assert momenta[3] - momenta[2] > momenta[1] - momenta[0]
    assert teacher.momentum_at(STEPS + 5) == pytest.approx(1.0)


def test_follows_its_model(made: tuple[SimDINO, MovingTeacher]) -> None:
    module, teacher = made
    assert module.follower is not None
    replica = module.follower.model
    start = {name: parameter.clone() for name, parameter in module.model.named_parameters()}
    with torch.no_grad():
        for parameter in module.model.parameters():
            parameter += 1
    teacher.update_collective(1)
    assert {name for name, _ in replica.named_parameters()} == start.keys()
    for name, parameter in replica.named_parameters():
        torch.testing.assert_close(parameter, start[name] + 0.1)
        assert not parameter.requires_grad
    assert not replica.training


def test_is_in_the_type_that_the_model_computes_in(made: tuple[SimDINO, MovingTeacher]) -> None:
    module, teacher = made
    assert module.follower is not None
    module.bfloat16()
    teacher.refresh_collective()
    replica = module.follower.model
    assert {parameter.dtype for parameter in replica.parameters()} == {torch.bfloat16}
    assert replica.pos_embed is not None
    assert replica.pos_embed.dtype == torch.float32
    assert all(average.dtype == torch.float32 for average in teacher.averages)
