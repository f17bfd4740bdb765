"""Connecting to a Ray cluster, or starting one on this machine."""

from __future__ import annotations

import logging
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pipeline.config.schema import ClusterConfig, ResourcesConfig
from pipeline.errors import ClusterError

CONNECT_TIMEOUT_S = 10.0
LOOPBACK = ("127.", "localhost")

ENVIRONMENT = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "120",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


@dataclass(frozen=True)
class Cluster:
    """What a connected cluster offers in all."""

    address: str
    cpus: int
    gpus: int

    def require(self, resources: ResourcesConfig, stage: str) -> None:
        """Raise `ClusterError` unless this cluster can hold all workers of a stage at once."""
        for kind, each, offered in (
            ("CPU", resources.cpus_per_worker, self.cpus),
            ("GPU", resources.gpus_per_worker, self.gpus),
        ):
            needed = each * resources.workers
            if needed > offered:
                raise ClusterError(
                    f"stages.{stage}: {resources.workers} workers with {each} {kind}s each need {needed} {kind}s, "
                    f"the cluster at {self.address} has {offered}; lower cluster.workers or add nodes"
                )


@contextmanager
def connect(config: ClusterConfig) -> Iterator[Cluster]:
    """Join the configured (or already running) Ray cluster, else start one on this machine for as long as the context.

    A cluster started here listens on loopback only and asks for a token that lives as long as it does.
    Raises `ClusterError` if the address does not answer.
    """
    os.environ.update({key: value for key, value in ENVIRONMENT.items() if key not in os.environ})
    address = config.address or os.environ.get("RAY_ADDRESS")
    if address is None or address.startswith(LOOPBACK):
        # Despite its name this holds on Linux too: a cluster of this machine alone binds to loopback.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    if address is None:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    else:
        require_answer(address)
        os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "1")  # each takes 45 s, and Ray's own default is 20
    import ray

    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    try:
        if address is None:
            ray.init(address="local", include_dashboard=False, **options)
        else:
            ray.init(address=address, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise no_answer(address or "this machine", error) from None
    try:
        offered = ray.cluster_resources()
        yield Cluster(
            address or "this machine",
            int(offered.get("CPU", 0)),
            int(offered.get("GPU", 0)),
        )
    finally:
        ray.shutdown()


def require_answer(address: str) -> None:
    """Raise `ClusterError` unless something listens at a HOST:PORT; other forms of address are Ray's to check."""
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if not separator or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        raise no_answer(address, error) from None


def no_answer(address: str, error: Exception) -> ClusterError:
    reason = str(error).strip().partition(". ")[0].partition("\n")[0] or type(error).__name__
    return ClusterError(
        f"cluster.address: no Ray cluster answers at {address} ({reason}); "
        "start one with `ray start --head`, or leave the address out to use this machine"
    )
