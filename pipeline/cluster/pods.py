"""How many pods of one size the stages of a config need."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.cluster.resources import Node, settle
from pipeline.config.cluster import ResourcesConfig
from pipeline.errors import ConfigError


def pods_for(stages: Mapping[str, ResourcesConfig], pod: Node, pods: int | None) -> int:
    """The number of pods: `pods` if given, otherwise enough for the stage with the most workers.

    `stages` maps names of stages to their resources. Raises `ConfigError` if a stage does not fit, or if its workers
    are `auto` and `pods` is not given.
    """
    _check_gpus(stages, pod)
    needed = 1
    for name, asked in stages.items():
        resources = settle(asked, [pod])
        each = pod.holds(resources)
        if not each:
            raise ConfigError(
                f"stages.{name}: a worker needs {resources}, but a pod has only {pod_size(pod)}; raise --cpus, or "
                "lower cluster.cpus_per_worker"
            )
        if asked.workers == "auto":
            if pods is None:
                raise ConfigError(
                    f"stages.{name}: found workers: auto, which does not say how many pods to request; set --pods or "
                    "cluster.workers"
                )
            continue
        if pods is not None and pods * each < resources.min_workers:
            raise ConfigError(
                f"stages.{name}: {resources.min_workers} workers do not fit into {pods} pods, each of which has "
                f"{pod_size(pod)} and holds {each}; raise --pods, or lower cluster.workers"
            )
        needed = max(needed, -(-resources.max_workers // each))
    return pods or needed


def pod_size(pod: Node) -> str:
    return f"{pod.cpus} CPUs" + (f" and {pod.gpus} GPUs" if pod.gpus else "")


def _check_gpus(stages: Mapping[str, ResourcesConfig], pod: Node) -> None:
    for name, asked in stages.items():
        if asked.gpus_per_worker == 1 and not pod.gpus:
            raise ConfigError(
                f"stages.{name}: needs a GPU per worker, but --gpus is 0; set --gpus to the number of GPUs per pod, or "
                "set cluster.gpus_per_worker=0"
            )
    if pod.gpus and all(asked.gpus_per_worker == 0 for asked in stages.values()):
        raise ConfigError(
            f"--gpus: found {pod.gpus}, but no stage uses a GPU; leave it out, or set cluster.gpus_per_worker=auto"
        )
