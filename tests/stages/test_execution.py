from __future__ import annotations

from typing import Any

import pytest

from pipeline.stages import execution
from pipeline.stages.context import RunContext
from pipeline.stages.execution import Execution
from pipeline.stages.resolve import Branch, awaited_ids


def test_finished_branches_are_skipped_in_order_and_without_a_cluster(
    context: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect() -> Any:
        raise AssertionError("connected")

    context.connect = connect
    asked: list[str] = []

    def skip_finished(_: RunContext, branch: Branch, __: object) -> bool:
        asked.append(branch.id)
        return branch.id != "larger"

    monkeypatch.setattr(execution, "skip_finished", skip_finished)
    running = Execution(context)
    everything = set(running.waiting)
    running.skip_finished()
    behind = {id for id in everything if "larger" in awaited_ids(context.config, id)}
    assert behind
    assert not behind.intersection(asked)
    assert set(running.waiting) >= behind | {"larger"}
    assert running.finished == everything - set(running.waiting)
    assert all(running.finished.issuperset(awaited_ids(context.config, id)) for id in asked)

    monkeypatch.setattr(execution, "skip_finished", lambda *_: True)
    running = Execution(context)
    running.skip_finished()
    running.run()
    assert running.finished == everything
