from __future__ import annotations

import torch
from torch import nn

from pipeline.models.minivit import MiniViT
from pipeline.models.variants import build_spec
from pipeline.tasks._teacher import Frozen

SPEC = build_spec("nano", image_size=8, num_classes=3, channels=1, depth=2, dropout=0.2, drop_path=0.5)


class Student(nn.Module):
    """A module that learns from a teacher."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.teacher = Frozen(MiniViT.from_spec(SPEC))


def test_a_teacher_is_no_part_of_the_module_that_keeps_it() -> None:
    student = Student()
    assert {name for name, _ in student.named_parameters()} == {"layer.weight", "layer.bias"}
    assert student.state_dict().keys() == {"layer.weight", "layer.bias"}
    assert list(student.modules()) == [student, student.layer]


def test_it_stays_frozen_and_in_eval_mode() -> None:
    student = Student()
    student.train().requires_grad_(True)
    teacher = student.teacher.model_like(student.layer.weight)
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    images = torch.randn(2, 1, 8, 8)
    assert torch.equal(teacher(images), teacher(images))


def test_it_follows_device_and_type_of_the_student() -> None:
    student = Student().to(torch.bfloat16)
    assert student.teacher.model_like(student.layer.weight).patch_embed.proj.weight.dtype == torch.bfloat16
    student.to("meta")
    assert student.teacher.model_like(student.layer.weight).patch_embed.proj.weight.is_meta
