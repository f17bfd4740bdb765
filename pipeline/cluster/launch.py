"""One Ray Train job: the same function on every rank, started again when a rank is lost."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.config.schema import ResourcesConfig
from pipeline.errors import ClusterError, PipelineError
from pipeline.train.device import collective_backend

logger = logging.getLogger(__name__)

WORKER_ENVIRONMENT = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "OMP_NUM_THREADS", "TORCH_EXTENSIONS_DIR")

# A rank that raises one of these would raise it again: to start it again only hides the fault.
FAULTS_OF_OURS = (AssertionError, AttributeError, ImportError, LookupError, NameError, TypeError)


class WorkersLost(ClusterError):
    """Ranks died for a reason that is not the user's; the job may be started again."""


def launch(worker: Callable[[Any], None], job: Any, resources: ResourcesConfig, *, name: str, folder: Path) -> None:
    """Run `worker(job)` on every rank, in a process group, until all have returned; logs go to `folder/logs`.

    A `PipelineError` that any rank raised comes out as it is, and so does a fault of our own code; a rank that died, or
    failed because another did, becomes `WorkersLost`.
    """
    import ray
    from ray.train.torch import TorchConfig
    from ray.train.v2.api.config import FailureConfig, RunConfig, ScalingConfig
    from ray.train.v2.api.exceptions import TrainingFailedError
    from ray.train.v2.torch.torch_trainer import TorchTrainer

    environment = {key: os.environ[key] for key in WORKER_ENVIRONMENT if key in os.environ}
    trainer = TorchTrainer(
        run_rank,
        train_loop_config={"worker": worker, "job": job, "cpus": resources.cpus_per_worker, "logs": folder / "logs"},
        torch_config=TorchConfig(backend=collective_backend(resources.gpus_per_worker)),
        scaling_config=ScalingConfig(
            num_workers=resources.workers,
            use_gpu=resources.gpus_per_worker > 0,
            resources_per_worker=worker_resources(resources),
        ),
        run_config=RunConfig(
            name=name,
            storage_path=str(folder / "ray"),
            failure_config=FailureConfig(max_failures=0),
            worker_runtime_env={"env_vars": environment},
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        for failure in getattr(error, "worker_failures", {}).values():
            if cause := root_cause(failure, PipelineError) or root_cause(failure, FAULTS_OF_OURS):
                raise cause from None
        raise WorkersLost(f"{name}: {describe(error)}") from error
    except ray.exceptions.RayError as error:
        raise WorkersLost(f"{name}: {describe(error)}") from error
    finally:
        shutil.rmtree(folder / "ray", ignore_errors=True)  # Ray's own storage; checkpoints are ours


def worker_resources(resources: ResourcesConfig) -> dict[str, float]:
    asked = {"CPU": float(resources.cpus_per_worker)}
    return asked | ({"GPU": float(resources.gpus_per_worker)} if resources.gpus_per_worker else {})


def root_cause(
    failure: BaseException | None, kind: type[BaseException] | tuple[type[BaseException], ...]
) -> BaseException | None:
    """The exception of that kind inside what Ray wrapped around it, if there is one."""
    while failure is not None and not isinstance(failure, kind):
        failure = getattr(failure, "cause", None) or failure.__cause__
    return failure


def describe(error: BaseException) -> str:
    """The first sentence of the last telling line of a failure's message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].partition(". ")[0] if lines else type(error).__name__


def run_rank(config: dict[str, Any]) -> None:
    """Entry of one rank: its log, as many threads as CPUs were granted, and an orderly end of the process group."""
    import torch

    rank = torch.distributed.get_rank()
    config["logs"].mkdir(parents=True, exist_ok=True)
    logging.basicConfig(
        filename=config["logs"] / f"rank-{rank:05d}.log",
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        force=True,
    )
    logging.getLogger("pipeline").setLevel(logging.INFO)
    torch.set_num_threads(config["cpus"])
    try:
        config["worker"](config["job"])
    except Exception:
        logger.exception("rank %d failed", rank)
        raise
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
