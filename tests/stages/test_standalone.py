from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.cluster.resources import Resources
from pipeline.config.cluster import ClusterConfig
from pipeline.config.data import CacheConfig, DatasetConfig, PlainConfig
from pipeline.shards.named_sets import NamedSet
from pipeline.stages.standalone import dataset_of, results_of


def test_ranks_take_the_variables_that_the_command_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def cluster(config: ClusterConfig) -> Iterator[Any]:
        yield SimpleNamespace(settle=lambda config: Resources(1, 1, 1), require=lambda *_: None)

    launched: dict[str, Any] = {}
    monkeypatch.setattr("pipeline.stages.standalone.connect", cluster)
    monkeypatch.setattr("pipeline.stages.standalone.launch", lambda *_, **options: launched.update(options))
    (tmp_path / "found.json").write_text('{"models": {}}')
    job: Any = SimpleNamespace(folder=tmp_path)
    found = results_of(lambda job, context: None, job, ClusterConfig(env=["TEAM_TOKEN"]), "found.json", [])
    assert found == {"models": {}}
    assert launched["env"] == ["TEAM_TOKEN"]


def test_a_data_set_of_a_pipeline_keeps_its_cache_and_its_way_of_resizing(
    tmp_path: Path, make_shards: Callable[..., None]
) -> None:
    make_shards("test", 10, 10, None)
    config = DatasetConfig(
        shards="data/test-*.tar",
        cache=CacheConfig(folder=str(tmp_path / "cache"), max_gigabytes=1),
        eval=PlainConfig(resize="shorter", crop_pct=0.875),
    )
    found = dataset_of(NamedSet("test", config)).config
    assert (found.cache, found.eval) == (config.cache, config.eval)
