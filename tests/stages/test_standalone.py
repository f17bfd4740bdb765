from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.cluster.resources import Resources
from pipeline.config.cluster import ClusterConfig
from pipeline.stages.standalone import results_of


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
