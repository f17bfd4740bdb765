from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from pipeline.tasks.base import TaskModule
from pipeline.tasks.distillation import Task
from pipeline.tasks.distillation.features import BETA, patch_targets, whiten
from pipeline.tasks.distillation.teacher import Seen

WEIGHTS = torch.tensor([1.0, 0.0, 1.0])
IMAGES = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(3))

Make = Callable[..., TaskModule]


def loss_of(module: TaskModule, images: torch.Tensor = IMAGES) -> torch.Tensor:
    return module({"image": images}, {}, WEIGHTS, {}).losses


def test_targets_have_mean_0_and_variance_1() -> None:
    whitened = whiten(torch.randn(2, 5, 48) * 7 + 3)
    torch.testing.assert_close(whitened.mean(dim=-1), torch.zeros(2, 5), atol=1e-5, rtol=0)
    torch.testing.assert_close(whitened.var(dim=-1, correction=0), torch.ones(2, 5), atol=1e-4, rtol=0)


def test_another_grid_is_brought_to_the_students() -> None:
    """A map that grows evenly from left to right still does, and one on the same grid stays as it is."""
    ramp = torch.arange(8.0).expand(4, 8).reshape(1, 32, 1)
    assert patch_targets(Seen(None, ramp, (4, 8)), (4, 8)) is ramp
    smaller = patch_targets(Seen(None, ramp, (4, 8)), (2, 4)).view(2, 4)
    assert torch.equal(smaller[0], smaller[1])
    assert (smaller[0].diff() > 1.5).all()
    larger = patch_targets(Seen(None, ramp, (4, 8)), (8, 16)).view(8, 16)
    torch.testing.assert_close(larger[0, 1:-1].diff(), torch.full((13,), 0.5))


@pytest.mark.parametrize("loss", ["cosine", "smooth_l1"])
@pytest.mark.parametrize("tokens", [("patches", "cls"), ("patches",), ("cls",)])
def test_the_loss_is_the_mean_distance_of_the_tokens_that_count(student: Make, loss: str, tokens: tuple[str]) -> None:
    module = student(loss=loss, tokens=tokens)
    seen = module.teacher.tokens(IMAGES, module.model.patch_embed.proj.weight)
    wanted = {"patches": patch_targets(seen, (2, 2)), "cls": seen.cls}
    guessed = module.head(module.model.forward_features(IMAGES))
    parts = {"patches": guessed[:, 1:], "cls": guessed[:, :1]}

    def distance(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        if loss == "cosine":
            return 1 - (F.normalize(one, dim=-1) * F.normalize(other, dim=-1)).sum(dim=-1).mean(dim=1)
        gap = (one - other).abs()
        return torch.where(gap < BETA, gap**2 / (2 * BETA), gap - BETA / 2).mean(dim=(1, 2))

    each = torch.stack([distance(parts[name], whiten(wanted[name])) for name in tokens]).mean(dim=0)
    torch.testing.assert_close(loss_of(module), (each * WEIGHTS).sum()[None])


def test_every_parameter_learns_and_the_teacher_does_not(student: Make) -> None:
    module = student()
    loss_of(module).sum().backward()
    without = [name for name, p in module.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []
    assert not any(parameter.requires_grad for parameter in module.teacher._frozen.model.parameters())


@pytest.mark.parametrize(("size", "patch"), [((12, 16), (4, 4)), ((8, 8), (2, 4))])
def test_trains_at_any_size_and_patch(student: Make, size: tuple[int, int], patch: tuple[int, int]) -> None:
    module = student()
    module.model.patch = patch
    assert loss_of(module, torch.randn(3, 1, *size)).isfinite().all()


def test_a_student_that_is_trained_comes_closer(student: Make) -> None:
    module = student()
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = loss_of(module).sum() / 2
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_a_finished_student_predicts_without_its_teacher(student: Make) -> None:
    module = student()
    alone = Task().module(module.model, [], module.preprocess)
    (first, *_) = alone.predict(IMAGES, [(8, 8)] * 3)
    assert len(first) == 32
