"""What one rank does in the tests of several ranks: `python rank_program.py RANK WORLD_SIZE FOLDER CASES`.

CASES is JSON: name -> [function, arguments]. The results of all cases are left in `FOLDER/rank-RANK.pt`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.config.schema import ClassificationConfig, EngineConfig, OptimizerConfig
from pipeline.models.bundle import Preprocess
from pipeline.models.minivit import MiniViT
from pipeline.models.variants import build_spec
from pipeline.stream.batch import Batch
from pipeline.tasks import build_task
from pipeline.train.device import precision_dtype
from pipeline.train.ema import ShardedEMA
from pipeline.train.engine import Engine
from pipeline.train.loop import Meter, TrainingStep
from pipeline.train.optim import build_optimizer, parameter_groups

CLASSES, SIDE, GLOBAL_BATCH_SIZE, EMA_DECAY, CLIP = 3, 8, 8, 0.7, 1.0
SPEC = build_spec(
    "nano", image_size=SIDE, channels=1, num_classes=CLASSES, depth=2, embed_dim=32, num_heads=2, registers=1
)
PREPROCESS = Preprocess((0.5,), (0.5,), 1, (SIDE, SIDE))


def global_batch(step: int) -> Batch:
    """The same samples in every process; mixed labels and a stand-in of weight 0 among them."""
    generator = torch.Generator().manual_seed(step)
    size = GLOBAL_BATCH_SIZE
    weights = torch.ones(size)
    weights[step % size] = 0
    return Batch(
        images=torch.randint(0, 256, (size, 1, SIDE, SIDE), dtype=torch.uint8, generator=generator),
        labels=torch.randint(CLASSES, (size,), generator=generator),
        labels_mix=torch.randint(CLASSES, (size,), generator=generator),
        mix=torch.rand(size, generator=generator),
        weights=weights,
        slots=torch.arange(size),
        keys=[str(row) for row in range(size)],
        step=step,
    )


def share(batch: Batch, shares: list[int]) -> Batch:
    """This rank's part of a global batch; `shares` are the sizes of all parts."""
    start = sum(shares[: dist.get_rank()])
    rows = slice(start, start + shares[dist.get_rank()])
    tensors = {name: value[rows] for name, value in vars(batch).items() if isinstance(value, Tensor)}
    return Batch(**tensors, keys=batch.keys[rows], step=batch.step)


def optimizer_config(name: str) -> OptimizerConfig:
    return OptimizerConfig(name=name, lr=0.1 if name == "sgd" else 1e-3, weight_decay=0.05, layer_decay=0.8)


class Trainer:
    """The parts of a training stage, put together as `train.worker` does."""

    def __init__(self, zero_stage: int, precision: str, optimizer: str) -> None:
        torch.manual_seed(0)
        model = MiniViT.from_spec(SPEC)
        config = optimizer_config(optimizer)
        optimiser = build_optimizer(parameter_groups(model, config, SPEC.depth), config)
        settings = EngineConfig(zero_stage=zero_stage, precision=precision)
        self.engine = Engine(model, optimiser, settings, clip_grad_norm=CLIP)
        self.ema = ShardedEMA(self.engine.module, EMA_DECAY)
        self.task = build_task(ClassificationConfig(label_smoothing=0.1), CLASSES)
        self.meter = Meter.on(self.engine.device, self.task)
        dtype = precision_dtype(precision)
        self.step_once = TrainingStep(self.engine, self.task, PREPROCESS, dtype, GLOBAL_BATCH_SIZE, self.ema, seed=0)

    def train(self, first: int, last: int, shares: list[int], micro_batches: int) -> list[float]:
        """Run the steps from `first` up to `last`; returns the loss of each."""
        losses = []
        for step in range(first, last):
            self.engine.set_lr(1.0)
            self.step_once(share(global_batch(step), shares), step, micro_batches, self.meter)
            losses.append(self.meter.report_collective(self.task)["train/loss"])
        return losses

    def state(self) -> dict[str, Tensor]:
        return self.engine.full_state_collective()

    def weights(self) -> dict[str, Tensor]:
        """What this rank computes with: whole, or under ZeRO-3 its slice."""
        parameters = self.engine.module.named_parameters()
        return {name: getattr(value, "ds_tensor", value).detach().clone() for name, value in parameters}


def steps(zero_stage: int, precision: str, shares: list[int], micro_batches: int) -> dict[str, Any]:
    """Three steps of SGD, whose updates are proportional to gradients; then the average swapped in and out."""
    trainer = Trainer(zero_stage, precision, "sgd")
    losses = trainer.train(0, 3, shares, micro_batches)
    before = trainer.weights()
    with trainer.ema.swapped_in_collective():
        inside = trainer.weights()
    return {
        "losses": losses,
        "grad_norm": trainer.engine.grad_norm(),
        "state": trainer.state(),
        "averages": trainer.ema.full_state_collective(),
        "before": before,
        "inside": inside,
        "after": trainer.weights(),
        "average_bytes": sum(value.nbytes for value in trainer.ema.averages.values()),
    }


def save_and_go_on(zero_stage: int, precision: str, folder: str, shares: list[int]) -> dict[str, Any]:
    """Two steps of AdamW, a checkpoint, two more steps; and the same two again from the checkpoint."""
    target = Path(folder) / "step-00000002"
    trainer = Trainer(zero_stage, precision, "adamw")
    trainer.train(0, 2, shares, 1)
    if dist.get_rank() == 0:
        target.mkdir(parents=True)
    dist.barrier()
    trainer.engine.save_collective(target)
    trainer.ema.save_collective(target)
    dist.barrier()
    saved = {"saved": trainer.state(), "saved_averages": trainer.ema.full_state_collective()}
    losses = trainer.train(2, 4, shares, 1)
    undisturbed = {"losses": losses, "state": trainer.state(), "averages": trainer.ema.full_state_collective()}
    resumed = resume(zero_stage, precision, folder, shares, dist.get_world_size(), zero_stage)
    return {**saved, "undisturbed": undisturbed, "resumed": resumed}


def resume(
    zero_stage: int, precision: str, folder: str, shares: list[int], saved_world_size: int, saved_zero_stage: int
) -> dict[str, Any]:
    """Two more steps from a checkpoint of perhaps another world size or ZeRO stage, by a new engine."""
    source = Path(folder) / "step-00000002"
    trainer = Trainer(zero_stage, precision, "adamw")
    trainer.engine.load_collective(source, saved_world_size=saved_world_size, saved_zero_stage=saved_zero_stage)
    trainer.ema.load_collective(source)
    loaded = {"loaded": trainer.state(), "loaded_averages": trainer.ema.full_state_collective()}
    losses = trainer.train(2, 4, shares, 1)
    return {**loaded, "losses": losses, "state": trainer.state(), "averages": trainer.ema.full_state_collective()}


def main() -> None:
    rank, world_size, folder, cases = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), json.loads(sys.argv[4])
    os.environ |= {"DS_ACCELERATOR": "cpu", "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
    known = {"steps": steps, "save_and_go_on": save_and_go_on, "resume": resume}
    results = {name: known[function](*arguments) for name, (function, arguments) in cases.items()}
    torch.save(results, folder / f"rank-{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
