from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.stages import execution
from pipeline.stages.context import RunContext
from pipeline.stages.execution import Execution
from pipeline.stages.folder import FINISHED, Status
from pipeline.stages.resolve import Branch, awaited_ids


def finished(_: RunContext, branch: Branch) -> Any:
    return SimpleNamespace(id=branch.id, status=Status(FINISHED, branch.stage.type, "d", {}))


def test_finished_branches_are_skipped_in_order_and_without_a_cluster(
    context: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect() -> Any:
        raise AssertionError("connected")

    context.connect = connect
    asked: list[str] = []

    def skipped(context: RunContext, branch: Branch) -> Any:
        asked.append(branch.id)
        return None if branch.id == "larger" else finished(context, branch)

    monkeypatch.setattr(execution, "skipped", skipped)
    running = Execution(context)
    everything = set(running.waiting)
    running.skip_finished()
    behind = {id for id in everything if "larger" in awaited_ids(context.config, id)}
    assert behind
    assert not behind.intersection(asked)
    assert set(running.waiting) >= behind | {"larger"}
    assert running.finished == everything - set(running.waiting)
    assert all(running.finished.issuperset(awaited_ids(context.config, id)) for id in asked)

    monkeypatch.setattr(execution, "skipped", finished)
    running = Execution(context)
    running.skip_finished()
    running.run()
    assert running.finished == everything
