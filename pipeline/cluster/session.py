"""Connects to a Ray cluster, or starts one on this machine."""

from __future__ import annotations

import json
import logging
import os
import secrets
import signal
import socket
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from pipeline.cluster.fork_server import ForkServer
from pipeline.cluster.reservations import Cluster, idle_gpus, no_gpu
from pipeline.cluster.resources import Node, Resources, this_machine
from pipeline.config.cluster import ClusterConfig, ResourcesConfig
from pipeline.errors import ClusterError

CONNECT_TIMEOUT_S = 10.0
PROBE_TIMEOUT_S = 2.0
JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set by Ray for drivers of submitted jobs
LOOPBACK = ("127.", "localhost")
TOKEN_VARIABLES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
TOKEN_FILE = Path(".ray", "auth_token")  # in the home folder, where Ray looks last

ENVIRONMENT = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    # There was room before the job started, so if placement takes longer, others have taken it.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # Its workers would have no runtime environment, but those of a run do.
    "RAY_prestart_worker_first_driver": "0",
}


def elsewhere(config: ClusterConfig) -> str | None:
    """The address of the cluster that a run would use; None for this machine."""
    return config.address or os.environ.get("RAY_ADDRESS")


def idle_gpus_here(config: ClusterConfig, asked: Iterable[Resources]) -> str | None:
    """`idle_gpus` for this machine, if a run would use it; asks neither Ray nor CUDA."""
    return None if elsewhere(config) else idle_gpus(this_machine().gpus, "this machine", asked)


def missing_gpus_here(config: ClusterConfig, asked: Mapping[str, ResourcesConfig]) -> list[str]:
    """A sentence for each stage that asks for GPUs, if a run would use this machine and it has none."""
    if elsewhere(config) or this_machine().gpus:
        return []
    return [no_gpu(f"stages.{name}", "this machine") for name, stage in asked.items() if stage.gpus_per_worker == 1]


@contextmanager
def connect(config: ClusterConfig) -> Iterator[Cluster]:
    """Join the configured (or already running) Ray cluster, or start one on this machine for the context's lifetime.

    A cluster started here listens on loopback only and requires a token that is valid for its lifetime. A cluster at an
    address is shown the token of this environment. Raises `ClusterError` if it does not answer or refuses the token.
    """
    os.environ.update({key: value for key, value in ENVIRONMENT.items() if key not in os.environ})
    address = elsewhere(config)
    if address is None or address.startswith(LOOPBACK):
        # Despite its name this applies on Linux too: a cluster on this machine alone binds to loopback.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    if address is None:
        os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"  # nothing announces leaving nodes to a local cluster
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    else:
        require_answer(address)
        os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "1")  # each takes 45 s; Ray's default is 20
        if has_token():
            os.environ.setdefault("RAY_AUTH_MODE", "token")  # `ray start` and `ray job` infer it, ray.init does not
    import ray

    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    with ExitStack() as stack:
        try:
            with tempfile.TemporaryDirectory() as empty:
                options["runtime_env"] = runtime_environment(empty)
                if address is None:
                    server = None if this_machine().gpus else stack.enter_context(ForkServer())
                    if server:
                        options["runtime_env"]["py_executable"] = server.command
                    start_here(options)
                    stack.callback(end_here)
                    if server:
                        server.start()
                else:
                    ray.init(address=address, **options)
                    stack.callback(ray.shutdown)
        except Exception as error:  # a node that does not start in time is an Exception and nothing more
            raise (no_start(error) if address is None else no_answer(address, error)) from None
        if address is None:
            yield Cluster("this machine", own_nodes, shared=False)
        else:
            yield Cluster(address, answering_nodes)


def start_here(options: Mapping[str, Any]) -> None:
    """Start a cluster on this machine whose daemons and ranks outlive the signals that stop a run.

    SLURM, systemd and `kill -- -GROUP` send them to every process, but the run still has to commit. Signals that are
    blocked, unlike ignored ones, reach no handler that the processes install later. Ray itself blocks INT.
    """
    import ray

    former = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1})
    try:
        ray.init(address="local", include_dashboard=False, num_cpus=this_machine().cpus, **options)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


def end_here() -> None:
    """End the cluster that `start_here` started, with all its processes."""
    import ray
    from ray._private import worker

    node: Any = worker._global_node
    started: list[psutil.Process] = []
    for daemon in [info.process for infos in node.all_processes.values() for info in infos]:
        daemon.terminate = daemon.kill  # it blocks TERM, after which ray.shutdown would wait a second for it
        with suppress(psutil.NoSuchProcess):
            started += psutil.Process(daemon.pid).children(recursive=True)
    ray.shutdown()
    # Ray's agents would wait a minute for the daemons.
    for process in started:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def runtime_environment(empty: str) -> dict[str, str]:
    """What Ray sets up for ranks: an empty working folder, unless this driver is a Ray Job with its own folder.

    Without an empty folder, ranks would import from the driver's, where a `queue.py` would shadow Python's. A job's
    folder stays: Ray refuses to replace it, and ranks may need its content.
    """
    job = json.loads(os.environ.get(JOB_CONFIG, "{}"))
    return {} if "working_dir" in (job.get("runtime_env") or {}) else {"working_dir": empty}


def answering_nodes() -> list[Node]:
    """The nodes that Ray considers alive and that answer, to exclude lost ones before Ray notices them."""
    import ray
    from ray._private.state import available_resources_per_node

    free = available_resources_per_node()
    alive = [node for node in ray.nodes() if node["Alive"]]
    with ThreadPoolExecutor(max(len(alive), 1)) as pool:
        answers = pool.map(lambda node: answers_at(node["NodeManagerAddress"], node["NodeManagerPort"]), alive)
        nodes = [node for node, answered in zip(alive, answers, strict=True) if answered]
    return [as_node(node["NodeID"], node["Resources"], free.get(node["NodeID"], node["Resources"])) for node in nodes]


def as_node(id: str, total: Mapping[str, float], free: Mapping[str, float]) -> Node:
    """A node by its resources as Ray counts them; one held in part is busy. Ray leaves out what is not free."""
    cpus, gpus = int(total.get("CPU", 0)), int(total.get("GPU", 0))
    return Node(id, cpus, gpus, cpus - int(free.get("CPU", 0)), gpus - int(free.get("GPU", 0)))


def own_nodes() -> list[Node]:
    """The nodes of a cluster started here. Raises `ClusterError` if its only node is lost, which never returns."""
    if nodes := answering_nodes():
        return nodes
    raise ClusterError(
        "the Ray cluster that this run started has died: its raylet does not answer; "
        "run the same command again to resume from the last committed checkpoint"
    )


def answers_at(host: str, port: int) -> bool:
    """Whether something listens there."""
    try:
        socket.create_connection((host, port), timeout=PROBE_TIMEOUT_S).close()
    except OSError:
        return False
    return True


def require_answer(address: str) -> None:
    """Raise `ClusterError` unless something listens at a HOST:PORT; Ray checks other forms of address."""
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if not separator or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        raise no_answer(address, error) from None


def has_token() -> bool:
    """Whether this environment holds a token for Ray clusters."""
    return any(os.environ.get(name) for name in TOKEN_VARIABLES) or (Path.home() / TOKEN_FILE).is_file()


def no_answer(address: str, error: Exception) -> ClusterError:
    """The error for a cluster that cannot be joined; never holds the token."""
    if "AuthenticationError" in f"{type(error).__name__} {error.__cause__}":
        return ClusterError(
            f"cluster.address: the Ray cluster at {address} refuses this run, whose token is wrong or missing; set "
            "RAY_AUTH_TOKEN to the token that the cluster was started with, or RAY_AUTH_TOKEN_PATH to a file with it"
        )
    return ClusterError(
        f"cluster.address: no Ray cluster answers at {address} ({reason_of(error)}); "
        "start one with `ray start --head`, or leave the address out to use this machine"
    )


def no_start(error: Exception) -> ClusterError:
    """The error for a cluster that does not start on this machine."""
    return ClusterError(
        f"Ray did not start on this machine ({reason_of(error)}); its logs are in /tmp/ray/session_latest/logs, or "
        "below RAY_TMPDIR; free memory, disk space or CPUs, then run the same command again"
    )


def reason_of(error: Exception) -> str:
    """The first sentence of an error, or its kind."""
    return str(error).strip().partition(". ")[0].partition("\n")[0] or type(error).__name__
