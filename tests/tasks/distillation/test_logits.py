from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from pipeline.tasks.base import Outputs, TaskModule
from pipeline.tasks.distillation.logits import LogitDistillation, teacher_losses

LABELS = torch.tensor([0, 1, 2, 1])
TARGETS = {"label": LABELS, "label_mix": torch.tensor([1, 1, 0, 2]), "label_share": torch.tensor([1.0, 1.0, 0.6, 1.0])}
WEIGHTS = torch.tensor([1.0, 1.0, 1.0, 0.0])
IMAGES = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(3))

Make = Callable[..., TaskModule]


def step(module: TaskModule) -> Outputs:
    outputs = module({"image": IMAGES}, TARGETS, WEIGHTS, {})
    assert isinstance(outputs, Outputs)
    return outputs


def test_soft_is_the_divergence_at_a_temperature() -> None:
    """As Hinton et al. 2015 write it, sum over classes of p log(p / q), times the square of the temperature."""
    ours, theirs, temperature = torch.randn(5, 3), torch.randn(5, 3), 2.5
    p, q = (theirs / temperature).softmax(dim=-1), (ours / temperature).softmax(dim=-1)
    torch.testing.assert_close(teacher_losses(ours, theirs, temperature), temperature**2 * (p * (p / q).log()).sum(-1))
    torch.testing.assert_close(teacher_losses(ours, ours, temperature), torch.zeros(5))


def test_hard_is_the_cross_entropy_of_the_class_that_the_teacher_names() -> None:
    ours, theirs = torch.randn(5, 3), torch.randn(5, 3)
    expected = torch.stack([-F.log_softmax(one, dim=-1)[told.argmax()] for one, told in zip(ours, theirs, strict=True)])
    torch.testing.assert_close(teacher_losses(ours, theirs, None), expected)


@pytest.mark.parametrize("signal", ["hard", "soft"])
def test_labels_teach_cls_and_the_teacher_teaches_dist(student: Make, signal: str) -> None:
    def gradients(share: float) -> tuple[bool, bool]:
        module = student(signal=signal, share=share)
        step(module).losses.sum().backward()
        heads = module.model.heads
        return bool(heads["mlp_head"][1].weight.grad.any()), bool(heads["dist_head"].weight.grad.any())

    assert gradients(0.0) == (True, False)
    assert gradients(1.0) == (False, True)
    assert gradients(0.5) == (True, True)


def test_the_loss_weighs_both_and_leaves_out_what_does_not_count(student: Make) -> None:
    whole = step(student(signal="soft", share=0.3)).losses
    parts = [step(student(signal="soft", share=share)).losses for share in (0.0, 1.0)]
    torch.testing.assert_close(whole, 0.7 * parts[0] + 0.3 * parts[1])
    module = student(signal="soft")
    changed = IMAGES.clone()
    changed[3] = 9.0  # of weight 0
    assert torch.equal(module({"image": changed}, TARGETS, WEIGHTS, {}).losses, step(module).losses)


def test_the_two_logits_vote_in_the_forward_pass(student: Make) -> None:
    module = student(signal="hard")
    assert isinstance(module, LogitDistillation)
    torch.nn.init.normal_(module.model.heads["dist_head"].weight)
    of_labels, of_teacher = module._logits(IMAGES)
    torch.testing.assert_close(module.model(IMAGES), (of_labels + of_teacher) / 2)
    assert not torch.allclose(of_labels, of_teacher)


def test_without_dist_both_teach_cls(student: Make) -> None:
    module = student(signal="soft", dist_token=False)
    assert module.model.heads.keys() == {"mlp_head"}
    of_labels, of_teacher = module._logits(IMAGES)
    assert of_labels is of_teacher
    step(module).losses.sum().backward()


def test_the_teacher_is_asked_about_the_image_that_the_student_sees(
    student: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mixed as it may be: never about another one."""
    module = student(signal="hard")
    asked = []
    monkeypatch.setattr(module.teacher, "logits", lambda images, weight: asked.append(images) or torch.randn(4, 4))
    step(module)
    assert [images is IMAGES for images in asked] == [True]


def test_the_teachers_classes_are_the_students_by_name(student: Make) -> None:
    module = student(signal="hard")
    told = module.teacher.logits(IMAGES, module.model.patch_embed.proj.weight)
    assert torch.equal(module._teacher_logits(IMAGES), told[:, [2, 3, 0]])


def test_only_the_student_has_parameters_and_gradients(student: Make) -> None:
    module = student(signal="soft")
    step(module).losses.sum().backward()
    assert all(name.startswith("model.") for name, _ in module.named_parameters())
    assert all(parameter.grad is not None for parameter in module.parameters())
    teacher = module.teacher._frozen.model
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in teacher.parameters())
    assert not any(part.training for part in teacher.modules())


def test_measures_of_training_and_of_evaluation(student: Make) -> None:
    module = student(signal="hard")
    trained = module.means(step(module).sums)
    assert trained.keys() == {"loss", "agreement"}  # one sample is mixed, so no class is right
    names = module._teacher_logits(IMAGES).argmax(dim=-1)
    assert trained["agreement"] == pytest.approx((module.model(IMAGES).argmax(dim=-1) == names)[:3].float().mean())
    evaluated = module.eval()({"image": IMAGES}, TARGETS, WEIGHTS, {})
    assert module.means(evaluated.sums).keys() == {"loss", "accuracy", "top5"}
