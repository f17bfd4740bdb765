"""How a stage's job reacts when its workers change, with a script instead of the cluster's answers.

Real clusters, whose nodes are cut off and come back, are in `tests/integration`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.cluster.reservations import Cluster
from pipeline.cluster.resources import Node, Resources
from pipeline.config.cluster import ClusterConfig
from pipeline.config.schema import TrackingConfig
from pipeline.errors import ClusterError, DataError, Interrupted, WorkersLate, WorkersLost
from pipeline.stages.folder import StageFolder, Status
from pipeline.stages.jobs import StageJob
from pipeline.train.job import RESIZE, STOP, WorkersChange

ELASTIC = Resources(1, 4)


class Script:
    """Answers to one start of the job after the other; remembers what was started."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.started: list[int] = []

    def __call__(self, worker: Any, job: Any, resources: Any, *, workers: int, **_: Any) -> None:
        self.started.append(workers)
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        if answer is not None:
            answer()


def leaving(*nodes: str) -> WorkersChange:
    change = WorkersChange("its nodes change")
    change.leaving = nodes
    return change


@pytest.fixture
def nodes() -> list[Node]:
    """The nodes of the cluster, which a test adds to and takes from."""
    return [Node("a", 2, 0), Node("b", 2, 0)]


@pytest.fixture
def stage_job(
    tmp_path: Path, nodes: list[Node], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., StageJob[dict[str, int]]]:
    """Makes a stage job that follows a script; `reached` gives the step that each start goes on from."""
    monkeypatch.setattr("pipeline.stages.jobs.LOOK_FOR_ROOM_S", 0.01)
    monkeypatch.setattr("pipeline.stages.jobs.GROW_AFTER_S", 0.05)

    def make(
        script: Script, resources: Resources = ELASTIC, reached: list[int] | None = None, **cluster: Any
    ) -> StageJob[dict[str, int]]:
        monkeypatch.setattr("pipeline.stages.jobs.launch", script)
        steps = iter(reached or [0] * 99)
        context = SimpleNamespace(
            cluster=Cluster("here", lambda: nodes),
            config=SimpleNamespace(cluster=ClusterConfig(**cluster), tracking=TrackingConfig(), name="run"),
            stop=SimpleNamespace(asked=None),
            say=lambda stage_id, message: None,
        )
        folder = StageFolder(tmp_path / "stage")
        folder.path.mkdir()
        return StageJob(
            context=context,
            id="pretrain",
            folder=folder,
            status=Status("running", "pretrain", "d", {}),
            resources=resources,
            worker=lambda job, ranks: None,
            make=lambda workers: {"workers": workers, "step": next(steps)},
            reached=lambda job: job["step"],
            resizable=True,
        )

    return make


def events(job: StageJob[Any]) -> list[str]:
    path = job.folder.path / "events.jsonl"
    return [json.loads(line)["event"] for line in path.read_text().splitlines()] if path.is_file() else []


def test_an_undisturbed_job_starts_once_on_all_there_is(stage_job: Callable[..., Any]) -> None:
    script = Script(None)
    job = stage_job(script)
    assert job.run() == {"workers": 4, "step": 0}
    assert (script.started, events(job)) == ([4], [])


def test_a_lost_node_leaves_fewer_workers(stage_job: Callable[..., Any], nodes: list[Node]) -> None:
    def lose() -> None:
        nodes.pop()
        raise WorkersLost("a node is gone")

    script = Script(lose, None)
    job = stage_job(script)
    assert job.run()["workers"] == 2
    assert (script.started, events(job)) == ([4, 2], ["restart"])


def test_workers_that_are_not_started_are_tried_again_which_is_said_once(stage_job: Callable[..., Any]) -> None:
    script = Script(WorkersLate("Ray did not start 4 workers"), WorkersLate("Ray did not start 4 workers"), None)
    job = stage_job(script)
    assert job.run()["workers"] == 4
    assert (script.started, events(job)) == ([4, 4, 4], ["wait"])


def test_workers_that_are_never_started_end_the_run(stage_job: Callable[..., Any]) -> None:
    def late() -> None:
        time.sleep(0.06)
        raise WorkersLate("Ray did not start 4 workers in 20 s")

    job = stage_job(Script(late, late, late), wait_s=0.05)
    with pytest.raises(
        ClusterError, match=r"^stages\.pretrain: Ray did not start 4 workers in 20 s, and retries failed"
    ):
        job.run()


def test_nodes_about_to_go_are_left_before_they_go(stage_job: Callable[..., Any]) -> None:
    script = Script(leaving("b"), leaving("a"))
    job = stage_job(script, wait_s=0.05)
    expected = r"no room for 1 workers within 0 s \(cluster\.wait_s\); bring nodes back"
    with pytest.raises(ClusterError, match=expected):
        job.run()
    assert (script.started, events(job)) == ([4, 2], ["resize", "resize", "wait"])


def test_more_workers_are_asked_for_once_there_is_room(stage_job: Callable[..., Any], nodes: list[Node]) -> None:
    node = nodes.pop()

    def grow() -> None:
        nodes.append(node)
        wish = job.folder.path / STOP
        due = time.monotonic() + 20
        while not wish.exists():
            assert time.monotonic() < due
            time.sleep(0.01)
        assert wish.read_text() == RESIZE
        raise WorkersChange("there is room for more workers")

    script = Script(grow, None)
    job = stage_job(script)
    assert job.run()["workers"] == 4
    assert (script.started, events(job)) == ([2, 4], ["resize"])


def test_a_node_that_comes_and_goes_is_not_worth_a_restart(stage_job: Callable[..., Any], nodes: list[Node]) -> None:
    node = nodes.pop()

    def flap() -> None:
        for _ in range(5):
            nodes.append(node)
            time.sleep(0.02)
            nodes.remove(node)
            time.sleep(0.04)

    script = Script(flap)
    job = stage_job(script)
    job.run()
    assert not (job.folder.path / STOP).exists()


def test_restarts_count_while_nothing_new_is_committed(stage_job: Callable[..., Any]) -> None:
    lost = WorkersLost("a rank died")
    script = Script(lost, lost, lost, lost, lost)
    job = stage_job(script, reached=[0, 0, 8, 8, 8], max_restarts=2)
    expected = (
        r"^stages\.pretrain: workers were lost 3 times without a new checkpoint in between, but cluster\.max_restarts "
        r"allows 2; the last time: a rank died; logs are in .*/logs; run the same command again to resume"
    )
    with pytest.raises(ClusterError, match=expected):
        job.run()
    assert len(script.started) == 5


def test_what_a_user_got_wrong_is_not_tried_again(stage_job: Callable[..., Any]) -> None:
    script = Script(DataError("a torn shard"))
    with pytest.raises(DataError, match="a torn shard"):
        stage_job(script).run()
    assert len(script.started) == 1


def test_a_fixed_number_of_workers_waits_for_its_nodes(stage_job: Callable[..., Any], nodes: list[Node]) -> None:
    node = nodes.pop()
    script = Script(None)
    job = stage_job(script, Resources(4, 4), wait_s=30)
    job.context.say = lambda stage_id, message: nodes.append(node)  # it comes back once the job says that it waits
    assert job.run()["workers"] == 4
    assert events(job) == ["wait"]


def test_a_stop_is_heard_while_it_waits(stage_job: Callable[..., Any], nodes: list[Node]) -> None:
    nodes.clear()
    job = stage_job(Script(), wait_s=30)
    job.context.say = lambda stage_id, message: setattr(job.context.stop, "asked", "SIGTERM")
    with pytest.raises(Interrupted, match="stopped while waiting for nodes"):
        job.run()


def test_an_old_wish_does_not_stop_a_new_start(stage_job: Callable[..., Any]) -> None:
    job = stage_job(Script(None))
    (job.folder.path / STOP).write_text(RESIZE)
    job.run()
    assert not (job.folder.path / STOP).exists()
