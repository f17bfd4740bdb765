"""Cost of a checkpoint: stall per save, bandwidth compared with torch's, bytes per parameter, resharding."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.checkpoints.manifest import Manifest, MeterState, commit_manifest, verify_checkpoint
from pipeline.checkpoints.reshard import reshard
from pipeline.checkpoints.selection import step_folder
from pipeline.checkpoints.shard_file import Span, write_shard
from pipeline.checkpoints.state_reader import StateReader
from pipeline.checkpoints.storage import LocalStorage
from pipeline.cluster.launch import launch
from pipeline.cluster.resources import Resources
from pipeline.cluster.session import connect
from pipeline.config.cluster import ClusterConfig
from pipeline.config.training import CheckpointConfig, EngineConfig, OptimizerConfig
from pipeline.files import sync
from pipeline.models.minivit import MiniViT
from pipeline.models.variants import build_spec
from pipeline.train.device import precision_dtype, select_device
from pipeline.train.ema import ShardedEMA
from pipeline.train.engine import Engine
from pipeline.train.job import RankContext
from pipeline.train.optim import build_optimizer, parameter_groups
from pipeline.train.saver import ATTEMPT, Saver
from pipeline.train.state import TrainState
from pipeline.train.streams import copies_of

RESULT = "saves.json"
INTERVAL_S = 60.0  # between two saves, as the reference for a stall
KINDS = ("weights", "exp_avg", "exp_avg_sq", "ema")
WARM_UP_STEPS = 2


def measure(variant: str, rounds: int, workers: int) -> dict[str, Any]:
    """Measure all figures for the state of a model of the variant, with AdamW and a moving average."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        spec = build_spec(variant, image_size=224, num_classes=1000)
        with connect(ClusterConfig(workers=workers)):
            stalls = on_ranks(SavesJob(folder / "saves", variant, 2, rounds, image_size=224), workers)
            per_parameter = {
                f"zero_{stage}": on_ranks(SavesJob(folder / f"zero-{stage}", "nano", stage, 0, 28), workers)[
                    "bytes_per_parameter"
                ]
                for stage in range(4)
            }
        shapes = {name: list(p.shape) for name, p in on_meta(spec).named_parameters()}
        return {
            "saves_behind_training": stalls,
            "bytes_per_parameter": per_parameter,
            **bandwidth(folder / "bandwidth", shapes, rounds),
        }


def on_meta(spec: Any) -> MiniViT:
    with torch.device("meta"):
        return MiniViT.from_spec(spec, init="torch")


@dataclass(frozen=True)
class SavesJob:
    """Training with one image per rank and step, with `saves` saves during it; without any, one at the end."""

    folder: Path
    variant: str
    zero_stage: int
    saves: int
    image_size: int


def on_ranks(job: SavesJob, workers: int) -> dict[str, Any]:
    job.folder.mkdir(parents=True)
    name = f"bench-{job.folder.name}"
    launch(
        saves_worker,
        job,
        Resources(workers, workers),
        workers=workers,
        name=name,
        folder=job.folder,
        stall_timeout_s=ClusterConfig().stall_timeout_s,
    )
    found: dict[str, Any] = json.loads((job.folder / RESULT).read_text())
    return found


def saves_worker(job: SavesJob, ranks: RankContext) -> None:
    """Train and save with the components of `train.worker`; rank 0 writes the measurements."""
    state, advance = trainer(job)
    saver = make_saver(job, state)
    state.engine.before_change = saver.wait_copied
    undisturbed = [advance() for _ in range(WARM_UP_STEPS + max(job.saves, 1))][WARM_UP_STEPS:]
    waits, behind, seconds = [], [], []
    for save in range(max(job.saves, 1)):
        began = time.perf_counter()
        saver.begin_collective(save + 1, {}, MeterState(0, 0, [[0.0]]))
        steps = []
        while not all_done_collective(saver):
            steps.append(advance())
        seconds.append(time.perf_counter() - began)
        saver.finish()
        waits.append(saver.take_stall_s())
        behind.append(sum(steps) - len(steps) * statistics.median(undisturbed))
    if dist.get_rank() == 0:
        storage = LocalStorage(job.folder / "checkpoints")
        manifest = verify_checkpoint(storage, step_folder(max(job.saves, 1)))
        parameters = sum(torch.Size(shape).numel() for shape in state.shapes.values())
        found = {
            "parameters": parameters,
            "bytes_per_parameter": manifest.bytes / parameters,
            "step_s": statistics.median(undisturbed),
            "save_s": statistics.median(seconds),
            "wait_s": statistics.median(waits),
            "wait_share_of_60_s": statistics.median(waits) / INTERVAL_S,
            "copy_alone_s": copy_alone(state),
            "slower_steps_s": statistics.median(behind),
            "saves": len(waits),
        }
        (job.folder / RESULT).write_text(json.dumps(found))
    dist.barrier()


def all_done_collective(saver: Saver) -> bool:
    done = torch.tensor(saver.is_done, dtype=torch.int32, device=select_device())
    dist.all_reduce(done, op=dist.ReduceOp.MIN)
    return bool(done)


def trainer(job: SavesJob) -> tuple[TrainState, Callable[[], float]]:
    """Returns the state of a model in training, and a function that runs one step and returns its seconds."""
    channels = 1 if job.image_size == 28 else 3
    spec = build_spec(job.variant, image_size=job.image_size, channels=channels, num_classes=1000)
    config = OptimizerConfig()
    torch.manual_seed(0)
    model = MiniViT.from_spec(spec)
    groups = parameter_groups(model, config)
    precision = "fp32" if job.zero_stage == 0 else "bf16"
    optimizer = build_optimizer(
        groups, config, global_batch_size=1, partitioned=job.zero_stage > 0, precision=precision
    )
    settings = EngineConfig.model_validate({"zero_stage": job.zero_stage, "precision": precision})
    engine = Engine(model, optimizer, settings, clip_grad_norm=1.0)
    ema = ShardedEMA(engine.flats, 0.999)
    dtype = precision_dtype(precision)
    images = torch.randn(1, channels, job.image_size, job.image_size, device=engine.device).to(dtype)

    def advance() -> float:
        began = time.perf_counter()
        engine.set_lr(1.0)
        engine.backward(engine(images).float().square().mean())
        engine.step()
        ema.update(1)
        return time.perf_counter() - began

    return TrainState(engine, ema), advance


def make_saver(job: SavesJob, state: TrainState) -> Saver:
    (job.folder / ATTEMPT).write_text("bench")
    spec = SimpleNamespace(to_dict=lambda: {"variant": job.variant})
    stage = SimpleNamespace(checkpoint=CheckpointConfig(keep_last=1), global_batch_size=1, best_by=None)
    named: dict[str, Any] = {"attempt": "bench", "digest": "bench", "keep_steps": None, "run_ids": {}}
    place = str(job.folder / "checkpoints")
    train_job: Any = SimpleNamespace(folder=job.folder, checkpoints=place, spec=spec, stage=stage, **named)
    return Saver(state, train_job, lambda: None)


def copy_alone(state: TrainState) -> float:
    """Seconds to copy this rank's state to the host with nothing else running."""
    _, tensors = state.parts()
    copies = copies_of(state.engine.device)
    targets = {name: copies.host_memory(tensor) for name, tensor in tensors.items()}
    seconds = []
    for _ in range(4):
        began = time.perf_counter()
        copies.to_host(tensors, targets, after=copies.moment())
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])  # the first one also allocates its pages


def bandwidth(folder: Path, shapes: dict[str, list[int]], rounds: int) -> dict[str, Any]:
    """GB/s of saving and restoring a state of fp32 tensors, against `torch.save` and `torch.load` of the same, in turn.

    Saving includes the sync to disk; restoring fills existing tensors, and ours checks the hashes first.
    """
    storage = LocalStorage(folder)
    folder.mkdir(parents=True)
    numel = sum(torch.Size(shape).numel() for shape in shapes.values())
    flats = {f"0/{key}": torch.randn(numel) for key in KINDS}
    gigabytes = len(KINDS) * numel * 4 / 1e9
    layout, offset = [], 0
    for name, shape in shapes.items():
        size = torch.Size(shape).numel()
        layout.append(Span(name, 0, offset, size))
        offset += size
    speeds: dict[str, list[float]] = {}
    for step in range(1, rounds + 1):
        timings: dict[str, Callable[[], None]] = {
            "save/ours": partial(save_ours, storage, step, layout, flats, shapes),
            "save/torch": partial(save_torch, folder / "plain.pt", flats),
            "restore/ours": partial(restore_ours, storage, step, layout, flats),
            "restore/torch": partial(restore_torch, folder / "plain.pt", flats),
        }
        for name, work in timings.items():
            began = time.perf_counter()
            work()
            speeds.setdefault(name, []).append(gigabytes / (time.perf_counter() - began))
        storage.remove_folder(step_folder(step - 1))
    began = time.perf_counter()
    reshard(storage, step_folder(rounds), 4)
    seconds = time.perf_counter() - began
    return {
        "gigabytes": gigabytes,
        "save_gb_per_s": median_ratio(speeds["save/ours"], speeds["save/torch"]),
        "restore_gb_per_s": median_ratio(speeds["restore/ours"], speeds["restore/torch"]),
        "reshard_s_per_gb": seconds / gigabytes,
    }


def median_ratio(ours: list[float], theirs: list[float]) -> dict[str, float]:
    ratios = [mine / plain for mine, plain in zip(ours, theirs, strict=True)]
    return {
        "ours": statistics.median(ours),
        "torch": statistics.median(theirs),
        "ratio": statistics.median(ratios),
    }


def save_ours(
    storage: LocalStorage, step: int, layout: list[Span], flats: dict[str, Tensor], shapes: dict[str, list[int]]
) -> None:
    folder = step_folder(step)
    record = write_shard(storage, f"{folder}/rank-00000.safetensors", [layout], flats)
    commit_manifest(
        storage, folder, Manifest(step, step, 1, 2, "d", {}, shapes, [record], {}, MeterState(0, 0, [[0.0]]))
    )


def save_torch(path: Path, flats: dict[str, Tensor]) -> None:
    torch.save(flats, path)
    sync(path)


def restore_ours(storage: LocalStorage, step: int, layout: list[Span], flats: dict[str, Tensor]) -> None:
    folder = step_folder(step)
    reader = StateReader(storage, folder, verify_checkpoint(storage, folder))
    for name, flat in flats.items():
        for span in layout:
            part = flat[span.offset : span.offset + span.numel]
            reader.read_into(part, span.parameter, span.start, name.removeprefix("0/"))


def restore_torch(path: Path, flats: dict[str, Tensor]) -> None:
    for name, value in torch.load(path, weights_only=True).items():
        flats[name].copy_(value)
