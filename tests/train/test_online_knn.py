from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config.data import AugmentConfig, DatasetConfig
from pipeline.config.probe import OnlineKnnConfig
from pipeline.stream.source import Source
from pipeline.targets.class_id import ClassId
from pipeline.train.job import KnnJob
from pipeline.train.online_knn import knn_collective
from pipeline.train.stall import StallWatch

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def two(run_ranks: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    cases = {f"{zero} {looks}": ["embedded", [zero, [5, 3], looks]] for zero in (2, 3) for looks in (True, False)}
    return run_ranks(2, tmp_path_factory.mktemp("two") / "ranks", cases)


def test_features_are_the_same_however_the_weights_lie(two: Any) -> None:
    for rank, count in zip(two, (5, 3), strict=True):
        assert rank["2 True"]["features"].shape == (count, 64)
        torch.testing.assert_close(rank["3 True"]["features"], rank["2 True"]["features"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("zero", [2, 3])
def test_a_look_at_the_features_does_not_change_the_training(two: Any, zero: int) -> None:
    for rank in two:
        assert rank[f"{zero} True"]["losses"] == rank[f"{zero} False"]["losses"]


@pytest.mark.usefixtures("one_rank")
def test_brightness_tells_the_classes_apart(program: Any, tmp_path: Path) -> None:
    from pipeline.bench.synthetic import CLASSES, write_shards
    from pipeline.shards.index_file import load_index

    write_shards(tmp_path / "data")
    patterns = {name: f"{tmp_path}/data/{name}-*.tar" for name in ("train", "test")}
    targets = {"class_id": ClassId(("cls",), tuple(range(4)), 4)}
    sources = [
        Source(name, load_index(pattern), DatasetConfig(shards=pattern), AugmentConfig(), 1, targets)
        for name, pattern in patterns.items()
    ]
    task = program.task_module({"type": "mae"})
    job = KnnJob(sources[0], sources[1], len(CLASSES), OnlineKnnConfig(train="train", test="test", k=5))
    watch = StallWatch(600.0, tmp_path / "log")
    found = knn_collective(
        task, job, program.PREPROCESS, watch, batch_size=16, loader_workers=0, folder=tmp_path / "stage"
    )
    assert found["knn"] > 0.8
    assert task.training
