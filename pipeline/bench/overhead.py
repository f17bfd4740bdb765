"""Cost of engine, stream and tracking: a stage's loop compared with a bare loop of its model, in the same ranks."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from pipeline.bench.step_process import MasterCopy
from pipeline.checkpoints.selection import Selection
from pipeline.cluster.launch import launch
from pipeline.cluster.session import connect
from pipeline.config.schema import PipelineConfig, TrackingConfig
from pipeline.models.minivit import MiniViT
from pipeline.stages.context import RunContext, open_datasets
from pipeline.stages.folder import RUNNING, RunFolder, Status
from pipeline.stages.progress import Progress
from pipeline.stages.resolve import stage_branches
from pipeline.stages.stop import StopRequest
from pipeline.stages.types.train.setup import TrainSetup
from pipeline.tracking.runs import Tracker
from pipeline.tracking.store import choose_store
from pipeline.train.device import precision_dtype, select_device
from pipeline.train.job import RankContext, TrainJob
from pipeline.train.optim import build_optimizer, parameter_groups
from pipeline.train.saver import ATTEMPT
from pipeline.train.worker import TrainWorker

RESULT = "overhead.json"
WARM_UP_STEPS = 10


@dataclass(frozen=True)
class OverheadJob:
    """Rounds of `steps` steps of each loop in turn, so that a drift in the machine's speed affects both."""

    train: TrainJob
    rounds: int
    steps: int


class BareLoop:
    """The same model, arithmetic, optimiser and share of the batch, data-parallel, on one fixed batch.

    As in the engine, weights in half precision have fp32 master copies, one per parameter group.
    """

    def __init__(self, job: TrainJob) -> None:
        stage, spec = job.stage, job.spec
        device, dtype = select_device(), precision_dtype(stage.engine.precision)
        model = MiniViT.from_spec(spec).to(device=device, dtype=dtype)
        groups = parameter_groups(model, stage.optimizer)
        self.masters = [] if dtype == torch.float32 else [MasterCopy(group["params"]) for group in groups]
        for group, master in zip(groups, self.masters, strict=False):
            group["params"] = [master.weights]
        self.optimizer = build_optimizer(
            groups, stage.optimizer, stage.global_batch_size, partitioned=False, precision=stage.engine.precision
        )
        self.model = DistributedDataParallel(model)
        batch = stage.global_batch_size // dist.get_world_size()
        self.images = torch.randn(batch, spec.backbone.channels, *spec.backbone.image_size, device=device, dtype=dtype)
        self.labels = torch.randint(spec.num_classes, (batch,), device=device)

    def advance_collective(self, steps: int) -> None:
        for _ in range(steps):
            loss = torch.nn.functional.cross_entropy(self.model(self.images).float(), self.labels)
            loss.backward()
            for master in self.masters:
                master.take_gradients()
            torch.nn.utils.clip_grad_norm_([one for group in self.optimizer.param_groups for one in group["params"]], 1)
            self.optimizer.step()
            for master in self.masters:
                master.give_weights()
            self.model.zero_grad()


def overhead_worker(job: OverheadJob, ranks: RankContext) -> None:
    """Time both loops in turn on this rank; rank 0 writes images/s of every round."""
    worker, bare = TrainWorker(job.train, ranks), BareLoop(job.train)
    images = job.steps * job.train.stage.global_batch_size
    speeds: dict[str, list[float]] = {"ours": [], "bare_loop": []}
    with worker.batches() as batches:
        worker.advance_collective(batches, WARM_UP_STEPS)
        bare.advance_collective(WARM_UP_STEPS)
        for _ in range(job.rounds):
            dist.barrier()
            began = time.perf_counter()
            worker.advance_collective(batches, worker.step + job.steps)
            dist.barrier()
            between = time.perf_counter()
            bare.advance_collective(job.steps)
            dist.barrier()
            speeds["ours"].append(images / (between - began))
            speeds["bare_loop"].append(images / (time.perf_counter() - between))
    worker.close()
    if dist.get_rank() == 0:
        (job.train.folder / RESULT).write_text(json.dumps(speeds))


def measure(config: PipelineConfig, stage_name: str, *, rounds: int, steps: int) -> dict[str, Any]:
    """Images/s of a training stage's first branch and of its bare loop, and the median ratio over rounds."""
    with tempfile.TemporaryDirectory() as scratch, Progress() as progress, connect(config.cluster) as cluster:
        config = config.model_copy(update={"runs_dir": scratch})
        tracker = Tracker(choose_store(TrackingConfig(), Path(scratch), {}, {}))
        parent = tracker.start("bench", run_id=None)
        folder = RunFolder(Path(scratch) / config.name)
        stop = StopRequest(progress)
        context = RunContext(config, folder, lambda: cluster, tracker, parent, progress, stop, open_datasets(config))
        branch = next(branch for branch in stage_branches(config) if branch.stage_name == stage_name)
        setup = TrainSetup(context, branch)
        run_id = tracker.start(branch.id, run_id=None, parent=parent)
        status = Status(RUNNING, branch.stage.type, "bench", {}, mlflow_run_id=run_id)
        endless = WARM_UP_STEPS + rounds * steps + 1
        train = replace(
            setup.job(status, None, Selection()),
            total_steps=endless,
            eval_steps=endless,
            checkpoint_steps=endless,
            init=None,
        )
        train.folder.mkdir(parents=True)
        resources = context.resources(branch.stage)
        workers = cluster.reserve(branch.id, resources)
        (train.folder / ATTEMPT).write_text(train.attempt)
        measured = OverheadJob(train, rounds, steps)
        launch(
            overhead_worker,
            measured,
            resources,
            workers=workers,
            name="bench-overhead",
            folder=train.folder,
            stall_timeout_s=config.cluster.stall_timeout_s,
        )
        speeds = json.loads((train.folder / RESULT).read_text())
    ratios = [ours / bare for ours, bare in zip(speeds["ours"], speeds["bare_loop"], strict=True)]
    return {
        **{name: {"images_per_s": statistics.median(values), "rounds": values} for name, values in speeds.items()},
        "ratio": statistics.median(ratios),
        "stage": branch.id,
        "workers": workers,
    }
