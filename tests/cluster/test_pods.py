from __future__ import annotations

from typing import Any

import pytest

from pipeline.cluster.pods import pods_for
from pipeline.cluster.resources import Node
from pipeline.config.cluster import ElasticWorkers, ResourcesConfig
from pipeline.errors import ConfigError

GPUS, CPUS = Node("", 96, 8), Node("", 16, 0)


def asked(**settings: Any) -> dict[str, ResourcesConfig]:
    return {"pretrain": ResourcesConfig(**settings)}


@pytest.mark.parametrize(
    ("pod", "settings", "pods", "expected"),
    [
        (GPUS, {"workers": 8}, None, 1),
        (GPUS, {"workers": 9}, None, 2),
        (GPUS, {"workers": 8, "cpus_per_worker": 24}, None, 2),  # four workers use a pod's CPUs
        (GPUS, {"workers": ElasticWorkers(min=2, max=32)}, None, 4),
        (GPUS, {"workers": ElasticWorkers(min=2, max=32)}, 1, 1),
        (GPUS, {"workers": "auto"}, 3, 3),
        (CPUS, {"workers": 4, "cpus_per_worker": 8}, None, 2),
        (CPUS, {"workers": 4}, None, 1),
        (CPUS, {"workers": "auto"}, 2, 2),
    ],
)
def test_pods_hold_the_workers(pod: Node, settings: dict[str, Any], pods: int | None, expected: int) -> None:
    assert pods_for(asked(**settings), pod, pods) == expected


def test_the_stage_with_the_most_workers_counts() -> None:
    stages = {"pretrain": ResourcesConfig(workers=16), "evaluate": ResourcesConfig(workers=1)}
    assert pods_for(stages, GPUS, None) == 2


@pytest.mark.parametrize(
    ("pod", "settings", "pods", "sentence"),
    [
        (CPUS, {"gpus_per_worker": 1}, 1, r"needs a GPU per worker, but --gpus is 0; set --gpus"),
        (GPUS, {"gpus_per_worker": 0}, 1, r"--gpus: found 8, but no stage uses a GPU; leave it out"),
        (CPUS, {"cpus_per_worker": 32}, 1, r"a worker needs 32 CPUs, but a pod has only 16 CPUs; raise --cpus"),
        (CPUS, {}, None, r"found workers: auto, which does not say how many pods"),
        (
            GPUS,
            {"workers": 17},
            2,
            r"17 workers do not fit into 2 pods, each of which has 96 CPUs and 8 GPUs and holds 8;",
        ),
    ],
)
def test_what_does_not_fit_is_one_sentence(
    pod: Node, settings: dict[str, Any], pods: int | None, sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence) as error:
        pods_for(asked(**settings), pod, pods)
    assert "\n" not in str(error.value)
