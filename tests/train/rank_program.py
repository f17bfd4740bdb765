"""What one rank does in the tests of several ranks: `python rank_program.py RANK WORLD_SIZE FOLDER CASES DEVICE`.

DEVICE is "cpu", or "cuda": then all ranks share the first GPU. CASES is JSON: name -> [function, arguments]. The
results of all cases are left in `FOLDER/rank-RANK.pt`.
"""

from __future__ import annotations

import io
import json
import os
import sys
import time
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

import pipeline.train.engine as engine_module
from pipeline.checkpoints.manifest import read_manifest
from pipeline.checkpoints.selection import step_folder
from pipeline.checkpoints.state_reader import StateReader
from pipeline.checkpoints.storage import open_storage
from pipeline.config.probe import KnnConfig, LinearConfig, MethodsConfig, RetrievalConfig
from pipeline.config.task import task_class
from pipeline.config.training import CheckpointConfig, EngineConfig, OptimizerConfig
from pipeline.config.views import IMAGE, ViewGroup
from pipeline.errors import DataError
from pipeline.models.bundle import Preprocess, load_bundle
from pipeline.models.compiled import compile_layers
from pipeline.models.minivit import MiniViT
from pipeline.models.variants import build_backbone, build_spec
from pipeline.probe.measure import Measurement
from pipeline.probe.rows import Rows
from pipeline.stream.batch import OFFSETS, Batch
from pipeline.stream.batch_plan import shape_of
from pipeline.tasks.base import Coupled, Outputs, TaskModule, Tensors
from pipeline.tasks.classification.module import Classification
from pipeline.tasks.ranks import Ranks
from pipeline.text.training import train_tokenizer
from pipeline.train.device import compute_deterministically, precision_dtype, select_device
from pipeline.train.ema import ShardedEMA
from pipeline.train.engine import Engine
from pipeline.train.evaluate import evaluate_collective
from pipeline.train.first_samples import FirstSamples
from pipeline.train.loop import Meter, TrainingStep
from pipeline.train.micro_batch import cut, to_device
from pipeline.train.optim import build_optimizer, parameter_groups
from pipeline.train.replay import load_task
from pipeline.train.saver import ATTEMPT, Saver
from pipeline.train.state import TrainState
from pipeline.train.teacher import MovingTeacher

CLASSES, SIDE, GLOBAL_BATCH_SIZE, EMA_DECAY, CLIP = 3, 8, 8, 0.7, 1.0
TOTAL_STEPS = 10  # of the schedule of a moving teacher
TRUNK = {"channels": 1, "depth": 2, "embed_dim": 32, "num_heads": 2, "registers": 1, "dropout": 0.1, "drop_path": 0.3}
SPEC = build_spec("nano", image_size=SIDE, num_classes=CLASSES, **TRUNK)
LENGTH = 6  # tokens of a caption
TOKENIZER = train_tokenizer(["one two three"], 270, LENGTH)
PREPROCESS = Preprocess((0.5,), (0.5,), 1, (SIDE, SIDE), tokenizer=TOKENIZER)


def global_batch(step: int, groups: Mapping[str, ViewGroup] = IMAGE) -> Batch:
    """The same samples in every process, labelled in every way; mixed ones and a stand-in of weight 0 among them."""
    generator = torch.Generator().manual_seed(step)
    size = GLOBAL_BATCH_SIZE
    weights = torch.ones(size)
    weights[step % size] = 0
    maps = class_maps(size, generator)
    return Batch(
        views={
            name: torch.randint(
                0, 256, (size, *shape_of(group, 1, (SIDE, SIDE))), dtype=torch.uint8, generator=generator
            )
            for name, group in groups.items()
        },
        targets={
            "label": torch.randint(CLASSES, (size,), generator=generator),
            "label_mix": torch.randint(CLASSES, (size,), generator=generator),
            "label_share": torch.rand(size, generator=generator),
            "mask": maps,
            "mask_full": maps.flatten(),
            "mask_full.offsets": SIDE**2 * torch.arange(size + 1),
            "mask_full_size": torch.full((size, 2), SIDE, dtype=torch.int32),
            **depth_maps(size, generator),
            **keypoints(size, generator),
            **captions(size, generator),
            **boxes(size, generator),
        },
        weights=weights,
        slots=step * size + torch.arange(size),
        keys=[str(row) for row in range(size)],
        step=step,
    )


def captions(size: int, generator: torch.Generator) -> dict[str, Tensor]:
    """A caption of each sample, the one that was drawn, and one to three for evaluation; some are equal."""
    words = torch.randint(5, (size,), generator=generator)
    counts = 1 + torch.arange(size) % 3
    every = torch.randint(8, (int(counts.sum()),), generator=generator)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(dim=0)])
    tokens, all_tokens = (
        torch.from_numpy(TOKENIZER.encode([f"{number} two" for number in numbers.tolist()]))
        for numbers in (words, every)
    )
    return {
        "tokens": tokens,
        "caption": words,
        "all_tokens": all_tokens,
        "all_tokens.offsets": offsets,
        "all_captions": every,
        "all_captions.offsets": offsets,
    }


def boxes(size: int, generator: torch.Generator) -> dict[str, Tensor]:
    """None to three objects of each sample, one of which evaluation ignores."""
    counts = torch.arange(size) % 4
    total = int(counts.sum())
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(dim=0)])
    first = torch.rand(total, 2, generator=generator) * SIDE / 2
    corners = torch.cat([first, first + 1 + torch.rand(total, 2, generator=generator) * SIDE / 2], dim=1).clamp(
        max=SIDE
    )
    found = {
        "boxes": corners,
        "box_label": torch.randint(CLASSES, (total,), generator=generator),
        "boxes_full": corners.double(),
        "box_area": (corners[:, 2:] - corners[:, :2]).prod(dim=1).double(),
        "box_crowd": torch.arange(total) == 4,
    }
    return {
        **found,
        **{f"{name}{OFFSETS}": offsets for name in found},
        "boxes_full_size": torch.full((size, 2), SIDE, dtype=torch.int32),
    }


def class_maps(size: int, generator: torch.Generator) -> Tensor:
    """int8 [size, H, W]: of each more is ignored (-1) than of the one before."""
    classes = torch.randint(CLASSES, (size, SIDE, SIDE), generator=generator)
    ignored = torch.rand(size, SIDE, SIDE, generator=generator) < torch.arange(size)[:, None, None] / size
    return classes.where(~ignored, -1).to(torch.int8)


def depth_maps(size: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Depth of each, of which more was not measured (0) than of the one before; of the last nothing."""
    metres = 0.5 + 5 * torch.rand(size, SIDE, SIDE, generator=generator)
    hidden = torch.rand(size, SIDE, SIDE, generator=generator) < torch.arange(size)[:, None, None] / (size - 1)
    depth = metres.where(~hidden, 0)
    offsets, sizes = SIDE**2 * torch.arange(size + 1), torch.full((size, 2), SIDE, dtype=torch.int32)
    return {"depth": depth, "depth_full": depth.flatten(), f"depth_full{OFFSETS}": offsets, "depth_full_size": sizes}


def keypoints(size: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Of an instance of each, as training sees it, and of 0 to 2 instances in evaluation; some are not labelled."""
    counts = torch.arange(size) % 3
    offsets, total = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(dim=0)]), int(counts.sum())

    def labelled(count: int) -> Tensor:
        flags = torch.randint(3, (count, CLASSES, 1), generator=generator)
        return torch.cat([SIDE * torch.rand(count, CLASSES, 2, generator=generator), flags], dim=2)

    corners = SIDE / 2 * torch.rand(total, 2, generator=generator, dtype=torch.float64)
    ragged = {
        "instance_keypoints": labelled(total).double(),
        "instance_boxes": torch.cat([corners, corners + SIDE / 2], dim=1),
        "instance_areas": torch.full((total,), SIDE**2 / 4, dtype=torch.float64),
    }
    pixels = torch.randint(0, 256, (total * SIDE**2,), dtype=torch.uint8, generator=generator)
    return {
        "keypoints": labelled(size),
        "mirrored": torch.arange(size) % 2 == 1,
        **ragged,
        **{name + OFFSETS: offsets for name in ragged},
        "instance_views": pixels,
        f"instance_views{OFFSETS}": SIDE**2 * offsets,
        "keypoints_size": torch.full((size, 2), SIDE, dtype=torch.int32),
    }


def full_class_maps(size: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Class maps as evaluation has them, each of a size of its own, in one row."""
    sizes = torch.tensor([[SIDE + row, SIDE + 3] for row in range(size)], dtype=torch.int32)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.prod(dim=1).cumsum(dim=0)])
    classes = torch.randint(-1, CLASSES, (int(offsets[-1]),), generator=generator, dtype=torch.int8)
    return {"mask_full": classes, f"mask_full{OFFSETS}": offsets, "mask_full_size": sizes}


def share(batch: Batch, shares: list[int]) -> Batch:
    """This rank's part of a global batch; `shares` are the sizes of all parts."""
    start = sum(shares[: dist.get_rank()])
    return cut(batch, start, start + shares[dist.get_rank()])


def optimizer_config(name: str) -> OptimizerConfig:
    """Of an optimiser by its name; `plain` is SGD without momentum, which keeps no state, `gradient` the barest one."""
    if name == "gradient":
        return OptimizerConfig(name="sgd", lr=1.0, momentum=0.0, weight_decay=0.0)
    fixed = {"weight_decay": 0.05, "layer_decay": 0.8}
    if name in ("sgd", "plain"):
        return OptimizerConfig(name="sgd", lr=0.1, momentum=0.9 if name == "sgd" else 0.0, **fixed)
    return OptimizerConfig(name=name, lr=1e-3, **fixed)


class Tied(nn.Module):
    """A model with a weight that two modules share, a frozen parameter and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(SIDE**2, SIDE**2), nn.Linear(SIDE**2, SIDE**2)
        self.second.weight = self.first.weight
        self.frozen = nn.Linear(SIDE**2, SIDE**2).requires_grad_(False)
        self.head = nn.Linear(SIDE**2, CLASSES)
        self.register_buffer("shift", torch.rand(SIDE**2))

    def layer_of(self, name: str) -> int:
        return ("first", "second", "frozen", "head").index(name.partition(".")[0])

    def decays(self, name: str) -> bool:
        return name.endswith("weight")

    def forward(self, images: Tensor) -> Tensor:
        x = images.to(self.shift.dtype).flatten(1) + self.shift
        return self.head(self.frozen(self.second(self.first(x).relu()).relu()))


class Wide(nn.Module):
    """Fifty million parameters, so that a checkpoint takes a while."""

    def __init__(self) -> None:
        super().__init__()
        width = 4096
        self.layers = nn.Sequential(nn.Linear(SIDE**2, width), *(nn.Linear(width, width) for _ in range(3)))
        self.head = nn.Linear(width, CLASSES)

    def layer_of(self, name: str) -> int:
        return 0

    def decays(self, name: str) -> bool:
        return name.endswith("weight")

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.layers(images.to(self.head.weight.dtype).flatten(1)))


class Scattered(Classification):
    """A classifier whose logits, scaled by a learned value, must also lie apart: from one another, and in a slice."""

    coupled = True

    def loss(self, views: Tensors, targets: Tensors, weights: Tensor, keys: Tensors) -> Outputs:
        found = super().loss(views, targets, weights, keys)
        rows = {"logits": self.model(views["image"]).float(), "key": keys["image"]}
        return found._replace(rows=rows, shared={"scale": self.model.mlp_head[1].bias.float().sum().exp()})

    def couple(self, rows: Tensors, shared: Tensors, weights: Tensor, ranks: Ranks, seed: int) -> Coupled:
        mine = rows["logits"] * shared["scale"]
        others, counts = ranks.gather(mine), ranks.gather(weights)
        apart = torch.exp(-torch.cdist(mine, others).square()) @ counts
        direction = torch.randn(CLASSES, generator=torch.Generator().manual_seed(seed % 2**63), device=mine.device)
        spread = ranks.sum((weights * (mine @ direction).square()).sum()) / counts.sum()
        loss = (weights * apart).sum() / counts.sum() + (spread - 1).square() / ranks.count
        assert ranks.gather(rows["key"]).dtype == torch.int64
        return Coupled(loss, torch.tensor([float(loss) * GLOBAL_BATCH_SIZE, 0, 0, 0, 0], dtype=torch.float64))


MODELS = {
    "wide": Wide,
    "vit": lambda: MiniViT.from_spec(SPEC),
    "sincos": lambda: MiniViT.from_spec(SPEC.with_backbone(positions="sincos")),
    "tied": Tied,
}
MODELS["lamb"] = MODELS["muon"] = MODELS["plain"] = MODELS[
    "vit"
]  # trained by the optimiser of that name, the others by AdamW
MODELS["scattered"] = MODELS["vit"]


def half_frozen() -> MiniViT:
    """The embedding and one of two layers stay as they are."""
    model = MiniViT.from_spec(SPEC)
    model.freeze(0.5)
    return model


MODELS["frozen"] = half_frozen


Settings = dict[str, Any]  # of a stage's `task` section


def optimizer_of(model: str | Settings) -> str:
    return model if isinstance(model, str) and model in ("lamb", "muon", "plain") else "adamw"


def view_groups(model: str | Settings, *, evaluation: bool = False) -> Mapping[str, ViewGroup]:
    """What the task sees of each sample."""
    return IMAGE if isinstance(model, str) else task_class(model["type"])(**model).view_groups(evaluation=evaluation)


def task_module(model: str | Settings) -> TaskModule:
    """A classifier of a name in `MODELS`, or a task with the model that it asks for."""
    names = [str(number) for number in range(CLASSES)]
    if isinstance(model, str):
        kind = Scattered if model == "scattered" else Classification
        return kind(MODELS[model](), PREPROCESS, names, label_smoothing=0.1)
    task = task_class(model["type"])(**model)
    backbone = build_backbone("nano", image_size=SIDE, **TRUNK, **task.backbone_fields())
    teacher = load_bundle(Path(task.taught_by), weights=False).spec if task.taught_by else None
    spec = task.model_spec(backbone, CLASSES if task.targets else 0, teacher)
    return task.module(MiniViT.from_spec(spec), names if task.targets else [], PREPROCESS)


class Trainer:
    """The parts of a training stage, put together as `train.worker` does."""

    def __init__(
        self,
        zero_stage: int,
        precision: str,
        optimizer: str,
        model: str | Settings = "vit",
        *,
        compiled: bool = False,
    ) -> None:
        torch.manual_seed(0)
        task, task_settings = task_module(model), model
        model = task.model
        if compiled:
            assert compile_layers(model.to(select_device()), 1)
        config = optimizer_config(optimizer)
        groups = parameter_groups(model, config)
        optimiser = build_optimizer(groups, config, GLOBAL_BATCH_SIZE, partitioned=zero_stage > 0, precision=precision)
        settings = EngineConfig.model_construct(zero_stage=zero_stage, precision=precision)
        self.engine = Engine(task, optimiser, settings, clip_grad_norm=CLIP, model=model)
        self.ema = ShardedEMA(self.engine.flats, EMA_DECAY)
        self.teacher = MovingTeacher(self.engine, task, TOTAL_STEPS) if task.follower else None
        self.state = TrainState(self.engine, self.ema, self.teacher)
        self.meter = Meter.on(self.engine.device, task)
        self.step_once = TrainingStep(self.engine, self.ema, 0, GLOBAL_BATCH_SIZE, self.teacher)
        self.groups = view_groups(task_settings)

    def train(self, first: int, last: int, shares: list[int], micro_batches: int) -> list[float]:
        """Run the steps from `first` up to `last`; returns the loss of each."""
        losses = []
        for step in range(first, last):
            self.engine.set_lr(1.0)
            batch = to_device(share(global_batch(step, self.groups), shares), self.engine.device)
            assert self.step_once(batch, step, micro_batches, self.meter)
            losses.append(self.meter.report_collective(self.engine.module, GLOBAL_BATCH_SIZE)["train/loss"])
        return losses

    def saver(self, root: str) -> Saver:
        """Commits below `root`, where it is made."""
        checkpoint = CheckpointConfig(keep_last=9)
        stage = SimpleNamespace(checkpoint=checkpoint, global_batch_size=GLOBAL_BATCH_SIZE, best_by=None)
        job = SimpleNamespace(
            folder=Path(root),
            checkpoints=root,
            attempt="a",
            digest="d",
            spec=SPEC,
            stage=stage,
            keep_steps=None,
            run_ids={},
        )
        Path(root).mkdir(parents=True, exist_ok=True)
        (job.folder / ATTEMPT).write_text(job.attempt)
        saver = Saver(self.state, job, lambda: None)
        self.engine.before_change = saver.wait_copied
        return saver

    def weights(self) -> dict[str, Tensor]:
        """What this rank computes with: whole, or under ZeRO-3 its slice."""
        parameters = self.engine.model.named_parameters()
        return {name: getattr(value, "ds_tensor", value).detach().clone() for name, value in parameters}

    def logits(self) -> Tensor:
        """What the model answers to the first global batch, the same on every rank."""
        self.engine.module.eval()
        with torch.no_grad():
            batch = to_device(global_batch(0), self.engine.device)
            views = {"image": PREPROCESS.normalise(batch.views["image"])}
            logits = self.engine.module(views, batch.targets, batch.weights, {}).predicted
        self.engine.module.train()
        return logits


def steps(
    zero_stage: int, precision: str, shares: list[int], micro_batches: int, root: str, optimizer: str = "sgd"
) -> dict[str, Any]:
    """Three steps, by default of SGD, whose updates are proportional to gradients; then the average in and out."""
    trainer = Trainer(zero_stage, precision, optimizer)
    losses = trainer.train(0, 3, shares, micro_batches)
    saver = trainer.saver(root)
    saver.begin_collective(3, {}, trainer.meter.state())
    saver.finish()
    before, answer = trainer.weights(), trainer.logits()
    with trainer.engine.computing_with_collective(trainer.ema.averages):
        inside, averaged_answer = trainer.weights(), trainer.logits()
    return {
        "losses": losses,
        "grad_norm": trainer.engine.grad_norm(),
        "before": before,
        "inside": inside,
        "after": trainer.weights(),
        "answers": (answer, averaged_answer, trainer.logits()),
        "average_bytes": sum(value.nbytes for value in trainer.ema.averages),
    }


def gradient(
    task: str | Settings, shares: list[int], micro_batches: int, zero_stage: int = 0, recompute: bool = False
) -> dict[str, Any]:
    """Loss and gradient of a global batch, which one step of plain SGD without weight decay shows."""
    trainer = Trainer(zero_stage, "fp32", "gradient", task)
    trainer.engine.model.transformer.recompute_activations(recompute)
    before = trainer.weights()
    losses = trainer.train(0, 1, shares, micro_batches)
    return {"loss": losses[0], "gradient": {name: before[name] - value for name, value in trainer.weights().items()}}


def evaluated(task: Settings, shares: list[int]) -> dict[str, Any]:
    """Measures of a global batch, and the files that rank 0 writes."""
    torch.manual_seed(0)
    module = task_module(task)
    collectors = module.collectors(validation=False).values()
    batch = global_batch(0, view_groups(task, evaluation=True))
    measures = evaluate_collective(module, [share(batch, shares)], collectors=collectors)
    files: dict[str, bytes] = {}
    if dist.get_rank() == 0:
        with TemporaryDirectory() as folder:
            for collector in collectors:
                collector.write(Path(folder), "model", [str(number) for number in range(CLASSES)])
            files = {path.name: path.read_bytes() for path in Path(folder).rglob("*.*")}
    return {"measures": measures, "files": files}


def save_and_go_on(
    zero_stage: int, precision: str, model: str | Settings, root: str, shares: list[int]
) -> dict[str, Any]:
    """Two steps, a checkpoint, two more steps while it is being written, and another."""
    trainer = Trainer(zero_stage, precision, optimizer_of(model), model)
    saver = trainer.saver(root)
    trainer.train(0, 2, shares, 1)
    saver.begin_collective(2, {"val/loss": 1.0}, trainer.meter.state())
    losses = trainer.train(2, 4, shares, 1)
    saver.begin_collective(4, {}, trainer.meter.state())
    saver.finish()
    return {"losses": losses}


def resume(
    zero_stage: int, precision: str, model: str | Settings, source: str, root: str, shares: list[int]
) -> dict[str, Any]:
    """Two more steps from a checkpoint of perhaps another world size or ZeRO stage, by a new engine."""
    trainer = Trainer(zero_stage, precision, optimizer_of(model), model)
    storage, folder = open_storage(source), step_folder(2)
    trainer.state.load_collective(StateReader(storage, folder, read_manifest(storage, folder)))
    saver = trainer.saver(root)
    saver.begin_collective(2, {}, trainer.meter.state())
    losses = trainer.train(2, 4, shares, 1)
    saver.begin_collective(4, {}, trainer.meter.state())
    saver.finish()
    return {"losses": losses}


def replayed(task: Settings, source: str) -> dict[str, Any]:
    """What a replay of the step after a checkpoint computes with."""
    settings = task_class(task["type"])(**task)
    stage = SimpleNamespace(task=settings, engine=SimpleNamespace(precision="fp32"), optimizer=OptimizerConfig())
    job = SimpleNamespace(
        stage=stage, spec=task_module(task).model.spec, checkpoints=source, resume_from=step_folder(2), classes=[]
    )
    job.preprocess = PREPROCESS
    found = load_task(job, SimpleNamespace(progress=lambda bytes_read: None))
    teacher = found.follower.model.state_dict() if found.follower else {}
    return {"model": found.model.state_dict(), "teacher": teacher}


def not_finite(zero_stage: int, precision: str, shares: list[int]) -> dict[str, Any]:
    """A step with an infinite pixel on the last rank between two good ones."""
    trainer = Trainer(zero_stage, precision, "adamw")
    trainer.train(0, 1, shares, 1)
    before, average = trainer.weights(), [value.clone() for value in trainer.ema.averages]
    task = trainer.engine.module
    task_loss = task.loss

    def spoilt(*inputs: Any) -> Outputs:
        losses, sums, *_ = task_loss(*inputs)
        factor = float("inf") if dist.get_rank() == dist.get_world_size() - 1 else 1.0
        return Outputs(losses * factor, sums * factor)

    task.loss = spoilt
    batch = to_device(share(global_batch(1), shares), trainer.engine.device)
    applied = trainer.step_once(batch, 1, 1, trainer.meter)
    task.loss = task_loss
    skipped = trainer.meter.skipped
    same_average = all(torch.equal(a, b) for a, b in zip(average, trainer.ema.averages, strict=True))
    after = trainer.weights()
    return {
        "applied": applied,
        "skipped": skipped,
        "before": before,
        "after": after,
        "same_average": same_average,
        "losses": trainer.train(2, 4, shares, 1),
    }


def accumulate(zero_stage: int, small: int) -> dict[str, Any]:
    """One step of SGD in bf16 on a gradient of 256 and so many of 1 from each rank; what the weights moved by."""
    model = nn.Linear(8, 1, bias=False)
    nn.init.zeros_(model.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    settings = EngineConfig.model_construct(zero_stage=zero_stage, precision="bf16")
    with redirect_stdout(io.StringIO()) as said:
        engine = Engine(model, optimizer, settings, clip_grad_norm=0.0)
    for size in (256.0, *[1.0] * small):
        engine.backward(engine(torch.full((1, 8), size, dtype=torch.bfloat16, device=engine.device)).sum())
    assert engine.step()
    [flat] = engine.flats
    moved = torch.cat([-flat.weights[span.offset : span.offset + span.numel] for span in flat.spans])
    return {"moved": moved, "said": said.getvalue()}


def waits(zero_stage: int) -> dict[str, Any]:
    """How often DeepSpeed waits for the device in four steps of two micro-batches, once it has warmed up."""
    trainer = Trainer(zero_stage, "fp32", "adamw")
    accelerator, calls = sys.modules["deepspeed"].get_accelerator(), []
    kept, accelerator.synchronize = accelerator.synchronize, lambda *_: calls.append(1)
    try:
        trainer.train(0, 4, [5, 3], 2)
    finally:
        accelerator.synchronize = kept
    return {"waits": len(calls)}


def overlapped(*arguments: Any) -> dict[str, Any]:
    """`steps` as on GPUs: reduction in small buckets, two of them, during the backward pass."""
    told, bucket = engine_module.engine_settings, engine_module.LARGEST_BUCKET
    engine_module.engine_settings = lambda *given, **named: told(*given, **(named | {"overlaps": True}))
    engine_module.LARGEST_BUCKET = 5000
    try:
        return steps(*arguments)
    finally:
        engine_module.engine_settings, engine_module.LARGEST_BUCKET = told, bucket


def compiled(zero_stage: int, precision: str) -> dict[str, Any]:
    """Three steps of this rank alone with compiled layers."""
    return {"losses": Trainer(zero_stage, precision, "sgd", compiled=True).train(0, 3, [GLOBAL_BATCH_SIZE], 2)}


def stall(root: str) -> dict[str, Any]:
    """Two saves with steps right behind them; how long these waited for the second, and how long it took."""
    trainer = Trainer(2, "bf16", "adamw", "wide")
    saver, shares = trainer.saver(root), [GLOBAL_BATCH_SIZE]
    trainer.train(0, 1, shares, 1)
    saver.begin_collective(1, {}, trainer.meter.state())  # takes the memory that the second one uses again
    saver.finish()
    saver.take_stall_s()
    began = time.perf_counter()
    saver.begin_collective(2, {}, trainer.meter.state())
    trainer.train(1, 3, shares, 1)
    waited_s = saver.take_stall_s()
    saver.finish()
    return {"waited_s": waited_s, "took_s": time.perf_counter() - began}


def memory(zero_stage: int, precision: str, variant: str, images: int) -> dict[str, Any]:
    """Bytes of the GPU that two steps at 224 px hold at most and at their end; `bucket` is the reduction's own."""
    spec = build_spec(variant, image_size=224, num_classes=1000)
    model = MiniViT.from_spec(spec)
    config = optimizer_config("adamw")
    optimiser = build_optimizer(parameter_groups(model, config), config, images, partitioned=True, precision="bf16")
    settings = EngineConfig(zero_stage=zero_stage, precision=precision)
    engine = Engine(model, optimiser, settings, clip_grad_norm=CLIP)
    ema = ShardedEMA(engine.flats, EMA_DECAY)
    batch = torch.randn(images, 3, 224, 224, device=engine.device).to(precision_dtype(precision))
    for step in range(2):
        engine.backward(engine(batch).float().square().mean())
        assert engine.step()
        ema.update(step + 1)
    return {
        "peak": torch.cuda.max_memory_allocated(),
        "kept": torch.cuda.memory_allocated() - batch.nbytes,
        "bucket": 4 * engine_module.LARGEST_BUCKET,
    }


def embedded(zero_stage: int, shares: list[int], looks: bool) -> dict[str, Any]:
    """Three steps of a task without labels; after the first, perhaps, this rank's features of the first batch."""
    trainer, features = Trainer(zero_stage, "fp32", "adamw", {"type": "mae"}), torch.empty(0)
    losses = trainer.train(0, 1, shares, 1)
    if looks:
        images = PREPROCESS.normalise(share(global_batch(0), shares).views["image"])
        with torch.no_grad(), trainer.engine.module.embedding("both") as embed:
            features = embed(images)
    return {"features": features, "losses": losses + trainer.train(1, 3, shares, 1)}


def first_samples() -> str:
    """What a rank says of first batches without a good sample, each rank's bad for another reason."""
    batch = share(replace(global_batch(0), weights=torch.zeros(GLOBAL_BATCH_SIZE)), [5, 3])
    reason = ("no image", "no label")[dist.get_rank()]
    try:
        FirstSamples("t", torch.device("cpu")).look_collective(replace(batch, reasons=[reason] * 4), last=False)
    except DataError as error:
        return str(error)
    return ""


def probe() -> dict[str, Any]:
    """What frozen features are worth, of this rank's part of the same samples in every process; many are equal."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % CLASSES
    features = torch.randint(-1, 2, (300, 4), generator=generator) + F.one_hot(labels, 4)
    parts = [Rows(features[some].float(), labels[some]) for some in (slice(0, 201), slice(201, 300))]
    mine = [Rows(*(rows.tensor_split(dist.get_world_size())[dist.get_rank()] for rows in part)) for part in parts]
    methods = MethodsConfig(knn=KnnConfig(), linear=LinearConfig(), retrieval=RetrievalConfig())
    measurement = Measurement(*mine, CLASSES, where="methods", tell=lambda words: None)
    measured = measurement.measure_collective(methods)
    by_sgd = measurement.measure_collective(MethodsConfig(linear=LinearConfig(optimizer="sgd", epochs=3)))
    chosen = measured.chosen | by_sgd.chosen
    return {"measures": measured.measures | {"by_sgd": by_sgd.measures["linear"]}, "chosen": chosen}


CASES = (
    probe,
    embedded,
    first_samples,
    steps,
    evaluated,
    gradient,
    save_and_go_on,
    resume,
    replayed,
    not_finite,
    accumulate,
    waits,
    overlapped,
    compiled,
    stall,
    memory,
)


def main() -> None:
    rank, world_size, folder, cases = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), json.loads(sys.argv[4])
    on_gpu = sys.argv[5] == "cuda"
    local_rank = 0 if on_gpu else rank
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(local_rank), "WORLD_SIZE": str(world_size)}
    torch.set_num_threads(1)
    if on_gpu:
        torch.cuda.set_device(0)
        compute_deterministically()
    else:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    backend = "nccl" if on_gpu and world_size == 1 else "gloo"  # NCCL refuses several ranks on one GPU
    dist.init_process_group(backend, init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
    known = {function.__name__: function for function in CASES}
    results = {name: known[function](*arguments) for name, (function, arguments) in cases.items()}
    torch.save(results, folder / f"rank-{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
