"""Set-up and tear-down of a rank: the process group, its log, as many threads as CPUs.

Ray's own torch backend would make the process group, but then Ray's controller imports torch at every job start. The
controller imports this module too, so it must stay light.
"""

from __future__ import annotations

import logging
import multiprocessing.util
import os
import shutil
import signal
import socket
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray.train.backend import Backend, BackendConfig

from pipeline.cluster.environment import take_environment
from pipeline.cluster.usage import NodeUsage, exchange_places, node_names
from pipeline.errors import ClusterError, PipelineError, WorkersLost

if TYPE_CHECKING:
    import torch
    from ray.train import TrainContext

logger = logging.getLogger(__name__)

# Once all ranks have started, they connect to rank 0 and, through it, to each other. A rank that cannot reach rank 0
# reports it before those waiting for it give up.
REACH_TIMEOUT_S, JOIN_TIMEOUT_S = 60.0, 120.0
PROBE_S = 5.0
START_TIMEOUT_S = 600.0  # to import torch, which may take minutes on a slow file system, and to join
JOB_ID = "job-id"  # file of the driver in the folder of the logs: a node that reads the same id there shares the folder


class RanksBackend(Backend):
    """Ranks set themselves up; NCCL needs every rank to see all GPUs of its node."""

    share_cuda_visible_devices = True


@dataclass
class RanksConfig(BackendConfig):
    @property
    def backend_cls(self) -> type[Backend]:
        return RanksBackend


def run_rank(environment: dict[str, str], config: dict[str, Any]) -> None:
    """Entry point of a rank; `environment` is what it takes from the driver."""
    from ray import cloudpickle, train

    take_environment(environment)
    start_resource_tracker()
    context = train.get_context()
    rank = context.get_world_rank()
    logs = Path(config["logs"])
    require_shared(logs, config["job_id"])
    log = logs / f"rank-{rank:05d}.log"
    write_log_to(log)
    from pipeline.errors import Interrupted
    from pipeline.train.stall import StallWatch

    watch = StallWatch(max(config["stall_timeout_s"], START_TIMEOUT_S), log)
    try:
        from pipeline.train.job import RankContext

        device = take_device(config["cpus"], config["gpus"])
        store = join_group(rank, context.get_world_size(), context.get_local_rank(), device)
        logger.info("rank %d of %d runs on %s", rank, context.get_world_size(), device)
        watch.close()
        watch = StallWatch(config["stall_timeout_s"], log)
        watch.share(store)
        worker, job = cloudpickle.loads(config["payload"])
        with sampling(store, rank, context, log.parent.parent, config["sample_every_s"]):
            worker(job, RankContext(watch, leaving_nodes))
    except Interrupted as left:
        logger.info("rank %d stops: %s", rank, left)
        raise
    except Exception as error:
        logger.exception("rank %d failed", rank)
        if isinstance(error, PipelineError) and context.get_local_world_size() < context.get_world_size():
            name_node(error)
        if full := memory_ran_out(error, log.parent.parent):
            raise full from None
        raise
    else:
        leave_group()
    finally:
        watch.close()
        remove_socket_folder()


def require_shared(logs: Path, job_id: str) -> None:
    """Raise ClusterError unless this node finds in `logs` the id that the driver wrote there."""
    try:
        found = (logs / JOB_ID).read_text()
    except OSError:
        found = ""
    if found != job_id:
        raise ClusterError(
            f"{logs.parent} is not shared: node {socket.gethostname()} does not find there what the driver wrote; set "
            "runs_dir, or --out of a single evaluation, to a folder on a file system that all nodes share, or run on "
            "one node"
        )


def start_resource_tracker() -> None:
    """Start Python's tracker of shared memory; its first start unblocks TERM, which may be blocked for a reason.

    SLURM sends TERM to every process of a cancelled job, whose ranks are to commit first.
    """
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    resource_tracker.ensure_running()
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def name_node(error: PipelineError) -> None:
    """Add to an error of one of several nodes which one it is: it alone may lack the data, or the room."""
    error.args = (f"{error} (on node {socket.gethostname()})",)


def remove_socket_folder() -> None:
    """Removes the temporary folder of the loader workers' sockets: Ray ends a rank without Python's exit handlers."""
    shutil.rmtree(multiprocessing.util.get_temp_dir(), ignore_errors=True)


def sampling(
    store: torch.distributed.Store, rank: int, context: TrainContext, folder: Path, every_s: float | None
) -> AbstractContextManager[object]:
    """Within this context one rank of each node samples its usage."""
    from ray.util import get_node_ip_address

    if every_s is None:
        return nullcontext()
    place = socket.gethostname(), get_node_ip_address()
    names = node_names(exchange_places(store, rank, context.get_world_size(), place))
    return NodeUsage(folder, names[rank], every_s) if context.get_local_rank() == 0 else nullcontext()


def write_log_to(path: Path) -> None:
    """Log to a file, which also receives what libraries and loader workers print to standard error."""
    logging.basicConfig(filename=path, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True)
    logging.getLogger("pipeline").setLevel(logging.INFO)
    with path.open("a") as file:
        os.dup2(file.fileno(), 2)


def take_device(cpus: int, gpus: int) -> torch.device:
    """The device of this rank: the GPU that Ray granted it, or the CPU with `cpus` threads."""
    import torch

    from pipeline.train.device import select_device, take_gpu

    torch.set_num_threads(cpus)
    if not gpus:  # a cluster we did not start may expose all its GPUs to ranks that asked for none
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        return select_device()
    from ray.train.torch import get_device

    return take_gpu(get_device)


def join_group(rank: int, world_size: int, local_rank: int, device: torch.device) -> torch.distributed.Store:
    """Make the default process group over all ranks: NCCL if they have GPUs, otherwise gloo.

    Also returns a store shared by all ranks. Raises `WorkersLost` if they cannot reach each other.
    """
    import torch
    from ray.train.collective import broadcast_from_rank_zero
    from ray.util import get_node_ip_address

    from pipeline.train.device import collective_backend
    from pipeline.train.stall import GROUP_TIMEOUT

    on_gpu = device.type == "cuda"
    # DeepSpeed reads the environment and takes the local rank for the GPU index.
    local = device.index if on_gpu else local_rank
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_RANK": str(local)}
    store, timeout = None, timedelta(seconds=JOIN_TIMEOUT_S)
    if rank == 0:
        host = get_node_ip_address()
        store = torch.distributed.TCPStore(host, 0, world_size, is_master=True, wait_for_workers=False)
    host, port = broadcast_from_rank_zero((host, store.port) if store else None)
    if store is None:
        reach_rank_0(rank, host, port)
    try:
        store = store or torch.distributed.TCPStore(host, port, world_size, is_master=False, timeout=timeout)
        torch.distributed.init_process_group(
            collective_backend(),
            store=store,
            rank=rank,
            world_size=world_size,
            timeout=timeout,
            device_id=bound_device(device, world_size),
        )
    except RuntimeError as error:
        raise WorkersLost(
            f"rank {rank}, on {socket.gethostname()}, could not connect to the other ranks through rank 0 at "
            f"{host}:{port} ({first_sentence(error)}); set GLOO_SOCKET_IFNAME, and NCCL_SOCKET_IFNAME on GPUs, to the "
            "network interface that connects the nodes"
        ) from error
    torch.distributed.set_timeout(GROUP_TIMEOUT)
    store.set_timeout(GROUP_TIMEOUT)
    return store.clone()


def bound_device(device: torch.device, world_size: int) -> torch.device | None:
    """The device to bind the group to: the rank's GPU, so that a barrier need not guess, unless there is one rank.

    torch splits every later group off a bound one, and NCCL was seen to fail at that with a single rank
    (https://github.com/deepspeedai/DeepSpeed/issues/8248).
    """
    return device if device.type == "cuda" and world_size > 1 else None


def reach_rank_0(rank: int, host: str, port: int, timeout_s: float = REACH_TIMEOUT_S) -> None:
    """Return once rank 0 accepts a connection; it opens its port before announcing it. Raises `WorkersLost`."""
    due = time.monotonic() + timeout_s
    while True:
        try:
            socket.create_connection((host, port), timeout=min(PROBE_S, timeout_s)).close()
        except OSError as error:
            if time.monotonic() >= due:
                raise WorkersLost(
                    f"rank {rank}, on {socket.gethostname()}, could not reach rank 0 at {host}:{port} within "
                    f"{timeout_s:.0f} s ({error}); ranks connect on ports that the system chooses, so open all ports "
                    "between the nodes, or start Ray on each node with --node-ip-address in a network that they share"
                ) from None
            time.sleep(min(1.0, timeout_s))
        else:
            return


def memory_ran_out(error: Exception, folder: Path) -> ClusterError | None:
    """The error for a stage that runs out of GPU memory, where restarting its ranks would not help."""
    import torch

    from pipeline.train.job import stage_id

    if not isinstance(error, torch.OutOfMemoryError):
        return None
    return ClusterError(
        f"{stage_id(folder)}: a GPU ran out of memory ({'. '.join(str(error).splitlines()[0].split('. ')[:3])}); "
        "lower micro_batch_size, or an evaluation's batch_size, or set engine.activation_checkpointing or a higher "
        "engine.zero_stage; `minivit plan` shows what each rank needs"
    )


def first_sentence(error: Exception) -> str:
    """The first sentence of a torch error, without the stack in its message."""
    return str(error).partition("\n")[0].partition(". ")[0]


def leave_group() -> None:
    """Destroy the process group: a rank that left this to the interpreter's exit was once seen to crash there."""
    import torch

    torch.distributed.destroy_process_group()


def leaving_nodes() -> tuple[str, ...]:
    """Ids of this job's nodes that Ray knows are about to be taken away. Every rank must call this."""
    from ray.train import get_preemption_info

    info = get_preemption_info()
    return tuple(info.preempted_node_ids) if info else ()
