"""Every number of a training stage at both ends of its range: either the config is refused, or the stage trains."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, get_args, get_origin

import cv2
import numpy as np
import pytest
import torch
from annotated_types import Ge, Gt, Le, Lt
from pydantic import ValidationError
from torch import Tensor

from pipeline.config.data import WHITE
from pipeline.config.fields import Setting
from pipeline.config.section import Section
from pipeline.config.train_stage import TrainStage
from pipeline.config.training import OptimizerConfig
from pipeline.errors import ConfigError
from pipeline.models.bundle import Preprocess
from pipeline.models.minivit import MiniViT
from pipeline.models.model_spec import ModelSpec
from pipeline.stages.resolve import Branch, stage_spec
from pipeline.stream.augment import load_augmented
from pipeline.stream.mix import mix_pair
from pipeline.tasks.task import task_of
from pipeline.train.ema import ShardedEMA
from pipeline.train.lr_schedule import lr_ratio
from pipeline.train.optim import build_optimizer, parameter_groups

LARGE, CLOSE = 1e6, 1e-7  # as close to a bound as fp32 can tell
CLASSES, SIDE, BATCH, STEPS = 3, 8, 4, 3
STAGE: dict[str, Any] = {
    "type": "pretrain",
    "model": {"variant": "nano", "image_size": SIDE, "patch_size": 4, "channels": 1, "depth": 2, "dropout": 0.1},
    "data": {"train": "train", "augment": {"rand_augment": {}}},
    "duration": f"{STEPS} steps",
    "global_batch_size": BATCH,
    "ema": 0.9,
}
# Where a setting does nothing unless another one is set: its path, and what to set besides.
NEEDED = {
    "data.augment.padding": {"data.augment.crop": "padded"},
    "optimizer.momentum": {"optimizer.name": "sgd"},
}
PATHS_WITHOUT_EFFECT_ON_A_STEP = ("resources", "engine", "checkpoint", "eval", "data.mixture", "resolution")


def numbers(section: type[Section], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], list[Any]]]:
    """Path and both ends of every number of a section and of those inside it; of a pair, both at each end."""
    for name, field in section.model_fields.items():
        setting, here = Setting.of(field.annotation, field.metadata), (*path, name)
        if ".".join(here).startswith(PATHS_WITHOUT_EFFECT_ON_A_STEP):
            continue
        if (inner := setting.section({"type": "classification"})) is not None and inner.__name__ != "Duration":
            yield from numbers(inner, here)
        elif setting.annotation in (int, float):
            yield here, ends(setting)
        elif get_origin(setting.annotation) is tuple:
            each, *others = get_args(setting.annotation)
            yield here, [[end] * (1 + len(others)) for end in ends(Setting.of(each))]


def ends(setting: Setting) -> list[float]:
    """The least and the greatest number in bounds; of whole numbers the least, as large ones only take room."""
    least, greatest = -LARGE, LARGE
    for bound in setting.bounds:
        match bound:
            case Ge(ge=limit):
                least = limit
            case Gt(gt=limit):
                least = limit + (1 if setting.annotation is int else CLOSE)
            case Le(le=limit):
                greatest = limit
            case Lt(lt=limit):
                greatest = limit - CLOSE
    return [int(least)] if setting.annotation is int else [least, greatest]


def with_setting(raw: dict[str, Any], path: str, value: Any) -> None:
    *sections, name = path.split(".")
    for section in sections:
        raw = raw.setdefault(section, {})
    raw[name] = value


def images(stage: TrainStage, spec: ModelSpec, step: int) -> tuple[Tensor, Tensor]:
    """Augmented and mixed images [B, C, H, W] in 0..1, and the share [B] of each one's own label."""
    rng = np.random.default_rng(step)
    drawn, shares = [], []
    for _ in range(BATCH):
        both = [cv2.imencode(".png", rng.integers(256, size=(11, 9, 1), dtype=np.uint8))[1].tobytes() for _ in "ab"]
        one, other = (
            load_augmented(data, spec.backbone.image_size, 1, WHITE, stage.data.augment, rng) for data in both
        )
        share = 1.0
        if stage.data.augment.mixup or stage.data.augment.cutmix:
            one, (share, _) = mix_pair(one, other, stage.data.augment, rng)
        drawn.append(torch.from_numpy(one).permute(2, 0, 1) / 255)
        shares.append(share)
    return torch.stack(drawn), torch.tensor(shares, dtype=torch.float32)


def train(stage: TrainStage, spec: ModelSpec) -> list[Tensor]:
    """What a few steps leave: losses, weights and their average."""
    torch.manual_seed(0)
    model = MiniViT.from_spec(spec, init=stage.model.init)
    optimizer = build_optimizer(
        parameter_groups(model, stage.optimizer),
        stage.optimizer,
        stage.global_batch_size,
        partitioned=False,
        precision="fp32",
    )
    peaks = [group["lr"] * group["lr_scale"] for group in optimizer.param_groups]
    assert stage.ema is not None
    ema = ShardedEMA([SimpleNamespace(weights=weights) for weights in model.parameters()], stage.ema)
    task = task_of(stage.task).module(model, [""] * CLASSES, Preprocess((0.0,), (1.0,), 1, spec.backbone.image_size))
    losses = []
    for step in range(STEPS):
        pixels, share = images(stage, spec, step)
        labels = torch.arange(BATCH) % CLASSES
        targets = {"label": labels, "label_mix": labels.flip(0), "label_share": share}
        loss = task({"image": pixels}, targets, torch.ones(BATCH), {}).losses.sum() / BATCH
        optimizer.zero_grad()
        loss.backward()
        schedule = stage.schedule
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * lr_ratio(step, STEPS, 0, schedule.name, schedule.final_lr_ratio)
        optimizer.step()
        ema.update(step + 1)
        losses.append(loss.detach())
    return [*losses, *(weights.detach() for weights in model.parameters()), *ema.averages]


EDGES = [
    (".".join(path), end)
    for path, both in numbers(TrainStage)
    for end in both
    if (path, end) != (("optimizer", "lr"), LARGE)  # a run that diverges says so when it does
]
OPTIMIZERS = get_args(OptimizerConfig.model_fields["name"].annotation)
CASES = [
    *((path, end, None) for path, end in EDGES if not path.startswith("optimizer.")),
    *((path, end, name) for path, end in EDGES if path.startswith("optimizer.") for name in OPTIMIZERS),
]


def test_the_walk_finds_the_numbers() -> None:
    found = {path for path, _ in EDGES}
    assert {"optimizer.betas", "model.eps", "data.augment.ratio", "task.label_smoothing", "ema"} <= found
    assert ("optimizer.momentum", 0) in EDGES


@pytest.mark.parametrize(("path", "end", "optimizer"), CASES)
def test_either_it_is_refused_or_it_trains(path: str, end: Any, optimizer: str | None) -> None:
    raw = copy.deepcopy(STAGE)
    for name, value in NEEDED.get(path, {}).items():
        with_setting(raw, name, value)
    if optimizer:
        with_setting(raw, "optimizer.name", optimizer)
    with_setting(raw, path, end)
    try:
        stage = TrainStage.model_validate(raw)
        spec = stage_spec(Branch("pretrain", "pretrain", "nano", stage), CLASSES)
    except (ValidationError, ConfigError):
        assert math.isclose(abs(np.max(end)), LARGE) or isinstance(end, int), "a bound that is no bound"
        return
    assert all(bool(value.isfinite().all()) for value in train(stage, spec))
