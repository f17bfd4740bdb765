from __future__ import annotations

import pytest
import torch

from pipeline.config.task import task_class
from pipeline.models.bundle import Preprocess
from pipeline.models.minivit import MiniViT
from pipeline.models.variants import build_backbone
from pipeline.tasks.clip.module import Clip
from pipeline.tasks.ranks import ALONE
from pipeline.text.training import train_tokenizer


@pytest.fixture
def module() -> Clip:
    task = task_class("clip")(text={"length": 8}, tokenizer={"size": 270}, max_scale=50.0)
    spec = task.model_spec(build_backbone("nano", image_size=8, depth=1), 0)
    tokenizer = train_tokenizer(["a red boot"], 270, 8)
    found = task.module(MiniViT.from_spec(spec), [], Preprocess((0.5,) * 3, (0.5,) * 3, 3, (8, 8), tokenizer=tokenizer))
    assert isinstance(found, Clip)
    return found


@pytest.mark.parametrize(("scale", "bound"), [(50.0, 1), (49.0, 0), (1.0, 1), (1.1, 0)])
def test_both_bounds_of_the_scale_are_counted(module: Clip, scale: float, bound: int) -> None:
    rows = {"images": torch.eye(3), "texts": torch.eye(3), "captions": torch.arange(3)}
    found = module.couple(rows, {"scale": torch.tensor(scale)}, torch.ones(3), ALONE, seed=0)
    assert module.means(found.sums)["scale_at_bound"] == bound
