"""One Ray Train job: the same function on every rank, in a process group."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cluster.environment import shared_with_ranks
from pipeline.cluster.resources import Resources
from pipeline.errors import PipelineError, WorkersLate, WorkersLost
from pipeline.train.job import RankContext

if TYPE_CHECKING:
    from ray.train.v2.api.config import RunConfig, ScalingConfig

# A restarted rank would raise these again: restarting would only hide the bug.
FAULTS_OF_OURS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    TypeError,
    ValueError,
)


def launch(
    worker: Callable[[Any, RankContext], None],
    job: Any,
    resources: Resources,
    *,
    workers: int,
    name: str,
    folder: Path,
    stall_timeout_s: float,
    env: Collection[str] = (),
    sample_every_s: float | None = None,
) -> None:
    """Run `worker(job, context)` on `workers` ranks, in a process group, until all have returned.

    Ranks log to `folder/logs` and inherit the variables `env` from this process, besides those that they always
    inherit. If none of them gives a sign of life for `stall_timeout_s`, all are stopped. With `sample_every_s`, the
    usage of each node is sampled into `folder/system`.

    Raises `ClusterError` if a node does not share `folder`; `PipelineError` or an exception of our own code unchanged,
    as a rank raised it; `WorkersLost` if a rank died, or failed because another did; `WorkersLate` if ranks did not
    start in time.
    """
    from ray import cloudpickle

    from pipeline.cluster.rank import JOB_ID, RanksConfig, run_rank
    from pipeline.cluster.trainer import Trainer

    logs, job_id = folder / "logs", secrets.token_hex(8)
    logs.mkdir(parents=True, exist_ok=True)
    (logs / JOB_ID).write_text(job_id)

    # As bytes, because Ray's controller unpickles the config, too, and should not have to import torch.
    payload = cloudpickle.dumps((worker, job))
    trainer = Trainer(
        # Not as Ray's runtime_env, which Ray's agents log: the variables may contain credentials.
        partial(run_rank, shared_with_ranks(os.environ, env)),
        train_loop_config={
            "payload": payload,
            "cpus": resources.cpus_per_worker,
            "gpus": resources.gpus_per_worker,
            "logs": str(logs),
            "job_id": job_id,
            "stall_timeout_s": stall_timeout_s,
            "sample_every_s": sample_every_s,
        },
        backend_config=RanksConfig(),
        scaling_config=_scaling_config(resources, workers),
        run_config=_run_config(name, folder),  # type: ignore[arg-type]  # annotated with version 1's class
    )
    try:
        with _failures_as_ours(name, workers):
            trainer.fit()
    finally:
        shutil.rmtree(folder / "ray", ignore_errors=True)  # Ray's own storage; checkpoints are ours


def _scaling_config(resources: Resources, workers: int) -> ScalingConfig:
    from ray.train.v2.api.config import ScalingConfig

    return ScalingConfig(
        num_workers=workers,
        use_gpu=resources.gpus_per_worker > 0,
        resources_per_worker=worker_resources(resources),
    )


def _run_config(name: str, folder: Path) -> RunConfig:
    from ray.train.v2.api.config import FailureConfig, RunConfig

    # The stage itself restarts its job and reports it; Ray would retry silently, forever.
    never = FailureConfig(max_failures=0, controller_failure_limit=0, max_preemption_failures=0)
    return RunConfig(name=name, storage_path=str(folder / "ray"), failure_config=never)


@contextmanager
def _failures_as_ours(name: str, workers: int) -> Iterator[None]:
    """Turns what Ray raises into the errors that `launch` promises."""
    import ray
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
    from ray.train.v2.api.exceptions import TrainingFailedError

    try:
        yield
    except TrainingFailedError as error:
        if isinstance(getattr(error, "controller_failure", None), WorkerGroupStartupTimeoutError):
            waited = float(os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"])
            raise WorkersLate(f"Ray did not start {workers} workers in {waited:.0f} s") from error
        for failure in getattr(error, "worker_failures", {}).values():
            if cause := root_cause(failure, PipelineError) or root_cause(failure, FAULTS_OF_OURS):
                raise cause from None
        raise WorkersLost(f"{name}: {last_sentence(error)}") from error
    except ray.exceptions.RayError as error:
        raise WorkersLost(f"{name}: {last_sentence(error)}") from error


def worker_resources(resources: Resources) -> dict[str, float]:
    asked = {"CPU": float(resources.cpus_per_worker)}
    return asked | ({"GPU": float(resources.gpus_per_worker)} if resources.gpus_per_worker else {})


def root_cause(
    failure: BaseException | None, kind: type[BaseException] | tuple[type[BaseException], ...]
) -> BaseException | None:
    """The exception of that kind inside Ray's wrappers, if any."""
    while failure is not None and not isinstance(failure, kind):
        failure = getattr(failure, "cause", None) or failure.__cause__
    return failure


def last_sentence(error: BaseException) -> str:
    """The first sentence of the last non-empty line of a failure's message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].partition(". ")[0] if lines else type(error).__name__
