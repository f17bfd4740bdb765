"""Tasks that compare the embeddings of several views: settings, gradients, and steps cut into micro-batches."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from pipeline.config.views import ViewGroup
from pipeline.models.bundle import Preprocess
from pipeline.models.drop_path import sample_keys
from pipeline.models.minivit import MiniViT
from pipeline.models.per_step import per_step
from pipeline.models.variants import build_backbone
from pipeline.stream.batch import Batch
from pipeline.tasks._joint_module import JointModule
from pipeline.tasks.base import Outputs
from pipeline.tasks.lejepa import Task as LeJEPATask
from pipeline.tasks.ranks import ALONE
from pipeline.tasks.simdino import Task as SimDINOTask
from pipeline.tasks.task import BaseTask
from pipeline.train.coupled import backward_coupled
from pipeline.train.micro_batch import split

VIEWS: dict[str, Any] = {"global": {"count": 2}, "local": {"count": 3, "size": 8}}
TASKS: list[BaseTask] = [
    LeJEPATask(views=VIEWS, slices=8),
    SimDINOTask(views=VIEWS),
    SimDINOTask(views=VIEWS, patch_loss={"mask_ratio": 0.5}),
    LeJEPATask(),
]
IDS = ["lejepa", "simdino", "simdino-v2", "lejepa-global"]


def module_of(task: BaseTask, **options: object) -> JointModule:
    """A task on a small model of images [1, 16, 16] in patches of 4."""
    torch.manual_seed(0)
    settings = {"patch_size": 4, "depth": 2, "embed_dim": 32, "num_heads": 2, "drop_path": 0.3, "dropout": 0.1}
    backbone = build_backbone("nano", image_size=16, channels=1, **{**settings, **task.backbone_fields(), **options})
    model = MiniViT.from_spec(task.model_spec(backbone, 0))
    module = task.module(model, [], Preprocess((0.5,), (0.2,), 1, (16, 16)))
    assert isinstance(module, JointModule)
    if module.follower is not None:  # one that is no copy of its student any more
        for parameter in module.follower.model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return module


def batch_of(task: BaseTask, size: int = 7) -> Batch:
    generator = torch.Generator().manual_seed(1)
    groups = task.view_groups().items()
    views = {
        name: torch.rand(size, group.count, 1, *(group.size or (16, 16)), generator=generator) for name, group in groups
    }
    weights = torch.ones(size).index_fill(0, torch.tensor([2]), 0.0)
    return Batch(views, {}, weights, torch.arange(size), [""] * size, 0)


def keys_of(batch: Batch) -> dict[str, Tensor]:
    keys, number = {}, 0
    for name, views in batch.views.items():
        keys[name] = torch.stack([sample_keys(number + view, batch.slots) for view in range(views.shape[1])], dim=1)
        number += views.shape[1]
    return keys


def step(module: JointModule, batch: Batch, parts: int, seed: int = 8) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Measures and gradients of one step, in so many micro-batches."""

    def forward(micro: Batch) -> Outputs:
        keys = keys_of(micro)
        with per_step(module, keys=keys["global"]):
            found: Outputs = module(micro.views, micro.targets, micro.weights, keys)
        return found

    module.zero_grad()
    micro_batches = list(split(batch, parts))
    scales = (1 / module.normalisers(batch)).float()
    sums = backward_coupled(module, forward, lambda loss: loss.backward(), micro_batches, scales, ALONE, seed)
    return module.means(sums), {name: p.grad for name, p in module.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("task", TASKS, ids=IDS)
def test_micro_batches_do_not_show(task: BaseTask) -> None:
    module, batch = module_of(task), batch_of(task)
    means, gradients = step(module, batch, 1)
    assert means.keys() == {measure for measure in task.measured.names if measure != "patches"} | (
        {"patches"} if getattr(task, "patch_loss", None) else set()
    )
    assert gradients.keys() == dict(module.model.named_parameters()).keys(), "what no view reaches is not trained"
    for parts in (3, 9):
        again, others = step(module, batch, parts)
        assert again == pytest.approx(means, rel=2e-5)
        for name, gradient in gradients.items():
            torch.testing.assert_close(others[name], gradient, atol=1e-6, rtol=1e-4)


def peak_of(module: JointModule, batch: Batch, parts: int) -> int:
    """The most bytes that a step keeps for its backward pass at once."""
    held, peak = 0, 0

    class Saved:
        def __init__(self, tensor: Tensor) -> None:
            nonlocal held, peak
            self.tensor = tensor
            held += tensor.nbytes
            peak = max(peak, held)

        def __del__(self) -> None:
            nonlocal held
            held -= self.tensor.nbytes

    with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
        step(module, batch, parts)
    return peak


@pytest.mark.parametrize("task", TASKS, ids=IDS)
def test_memory_grows_with_the_micro_batch_and_not_with_the_global_batch(task: BaseTask) -> None:
    module = module_of(task)
    one = peak_of(module, batch_of(task, 8), 1)
    assert peak_of(module, batch_of(task, 32), 4) < 1.2 * one < 0.6 * peak_of(module, batch_of(task, 32), 1)


@pytest.mark.parametrize("task", TASKS, ids=IDS)
def test_a_stand_in_is_no_sample(task: BaseTask) -> None:
    module, batch = module_of(task), batch_of(task)
    means, gradients = step(module, batch, 1)
    for views in batch.views.values():
        views[2] = torch.rand_like(views[2])
    again, others = step(module, batch, 1)
    assert again == pytest.approx(means, rel=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("task", TASKS[:3], ids=IDS[:3])
def test_a_few_steps_lower_the_loss(task: BaseTask) -> None:
    module, batch = module_of(task, drop_path=0.0, dropout=0.0), batch_of(task, 16)
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    losses = []
    for _ in range(15):
        means, _ = step(module, batch, 1)
        optimizer.step()
        losses.append(means["loss"])
    assert losses[-1] < losses[0] - 0.02


def test_the_effective_rank_is_measured_now_and_then() -> None:
    module, batch = module_of(TASKS[0]), batch_of(TASKS[0])
    assert 1 <= step(module, batch, 1, seed=16)[0]["effective_rank"] <= 32
    assert "effective_rank" not in step(module, batch, 1, seed=17)[0]


@pytest.mark.parametrize("pool", ["cls", "avg"])
@pytest.mark.parametrize("task", TASKS[:3], ids=IDS[:3])
def test_evaluation_gives_the_features_that_are_used_downstream(task: BaseTask, pool: str) -> None:
    module = module_of(task, pool=pool).eval()
    images, weights = torch.rand(3, 1, 16, 16), torch.ones(3)
    found = module({"global": images}, {}, weights, {"global": torch.arange(3)})
    assert module.means(found.sums) == {}
    assert found.predicted.shape == (3, 32)
    torch.testing.assert_close(torch.tensor(module.predict(images, [])), found.predicted)


def test_the_teacher_is_no_part_of_the_task() -> None:
    module = module_of(TASKS[2])
    assert module.follower is not None
    model = dict(module.model.named_parameters())
    assert {f"model.{name}" for name in model} == dict(module.named_parameters()).keys()
    before = [parameter.clone() for parameter in module.follower.model.parameters()]
    step(module, batch_of(TASKS[2]), 2)
    assert all(torch.equal(a, b) for a, b in zip(before, module.follower.model.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in module.follower.model.parameters())


def test_the_teacher_cuts_images_as_the_student_does() -> None:
    module, batch = module_of(TASKS[1]), batch_of(TASKS[1])
    with per_step(module, keys=keys_of(batch)["global"], patch=(8, 8)):
        module(batch.views, {}, batch.weights, keys_of(batch))
    assert module.follower is not None
    assert module.follower.model.patch == (8, 8)


def test_groups_have_the_scales_of_dino_by_default() -> None:
    task = LeJEPATask(views={"local": {"count": 6, "size": (8, 12)}, "global": {"scale": (0.3, 1.0)}})
    assert task.view_groups() == {
        "global": ViewGroup(2, None, (0.3, 1.0)),
        "local": ViewGroup(6, (8, 12), (0.05, 0.4)),
    }
    assert list(task.view_groups()) == ["global", "local"]
    assert task.view_groups(evaluation=True) == {"global": ViewGroup()}
    assert task.unmixable() == "the task lejepa sees several views of each sample, which cannot be mixed"


@pytest.mark.parametrize(
    ("views", "sentence"),
    [
        ({"local": {"count": 4, "size": 8}}, "the group global and optionally local, with at least two views in total"),
        ({"global": {"count": 1}}, "with at least two views in total"),
        ({"global": {"scale": [0.5, 0.2]}}, "a list of 2, the smaller first"),
        ({"global": {"scale": [0.0, 1.0]}}, "greater than 0"),
        ({"globl": {}}, "Input should be 'global' or 'local'"),
    ],
)
def test_impossible_views_are_refused(views: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(sentence)):
        LeJEPATask(views=views)
