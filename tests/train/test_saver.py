"""Saving in the background: what the loop waits for, which errors it reports, and what a kill at any moment leaves."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline.checkpoints.manifest import MeterState, verify_checkpoint
from pipeline.checkpoints.selection import newest_valid, step_folders
from pipeline.checkpoints.shard_file import Span
from pipeline.checkpoints.state_reader import StateReader
from pipeline.checkpoints.storage import LocalStorage, open_storage
from pipeline.config.training import CheckpointConfig
from pipeline.errors import CheckpointError
from pipeline.train.saver import ATTEMPT, Saver

PROGRAM = Path(__file__).with_name("kill_program.py")
WAIT_S = 20

pytestmark = pytest.mark.usefixtures("one_rank")


class State:
    """The live state of a rank: one tensor, which a test changes as a step would."""

    def __init__(self) -> None:
        self.engine = SimpleNamespace(device=torch.device("cpu"), zero_stage=2)
        self.shapes = {"weight": [1000]}
        self.live = torch.zeros(1000)

    def parts(self) -> tuple[list[list[Span]], dict[str, torch.Tensor]]:
        return [[Span("weight", 0, 0, 1000)]], {"0/weights": self.live}


@pytest.fixture
def state() -> State:
    return State()


@pytest.fixture
def make_saver(tmp_path: Path, state: State) -> Callable[..., Saver]:
    def make(beat: Callable[[], None] = lambda: None, url: str | None = None, **checkpoint: Any) -> Saver:
        config = CheckpointConfig(keep_last=9, **checkpoint)
        stage = SimpleNamespace(checkpoint=config, global_batch_size=8, best_by=None)
        (tmp_path / ATTEMPT).write_text("mine")
        named = {"digest": "d", "attempt": "mine", "keep_steps": None, "run_ids": {"stage": "x"}}
        spec = SimpleNamespace(to_dict=dict)
        place = url or str(tmp_path / "checkpoints")
        return Saver(state, SimpleNamespace(folder=tmp_path, checkpoints=place, stage=stage, spec=spec, **named), beat)

    return make


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "checkpoints")


def begin(saver: Saver, step: int) -> None:
    saver.begin_collective(step, {"val/loss": 0.5}, MeterState(1, 0, [[2.0]]))


def found(storage: Any, step: int) -> torch.Tensor:
    folder = f"step-{step:08d}"
    return StateReader(storage, folder, verify_checkpoint(storage, folder)).whole("weights")["weight"]


def hold(monkeypatch: pytest.MonkeyPatch, name: str) -> threading.Event:
    """Make a function of the saver's wait until the event is set."""
    release, original = threading.Event(), getattr(sys.modules["pipeline.train.saver"], name)

    def held(*arguments: Any) -> Any:
        assert release.wait(WAIT_S)
        return original(*arguments)

    monkeypatch.setattr(f"pipeline.train.saver.{name}", held)
    return release


def test_what_is_committed_is_the_moment_it_was_begun(
    make_saver: Callable[..., Saver], state: State, storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop goes on, and changes the live tensors, while the file is being written."""
    release = hold(monkeypatch, "write_shard")
    saver = make_saver()
    state.live.fill_(1)
    begin(saver, 1)
    saver.wait_copied()
    state.live.fill_(2)
    assert step_folders(storage) == []
    release.set()
    saver.finish()
    assert torch.equal(found(storage, 1), torch.ones(1000))
    manifest = verify_checkpoint(storage, "step-00000001")
    assert (manifest.step, manifest.slots, manifest.metrics) == (1, 8, {"val/loss": 0.5})
    assert (manifest.run_ids, manifest.window) == ({"stage": "x"}, MeterState(1, 0, [[2.0]]))


def test_a_rank_on_the_second_gpu_commits_what_its_step_left(
    make_saver: Callable[..., Saver],
    state: State,
    storage: LocalStorage,
    fake_torch: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The step is still under way when the save begins, and the next one waits until all bytes have arrived."""
    device = torch.device("cuda", 1)
    fake_torch.cuda.set_device(device)
    state.engine.device, state.live = device, fake_torch.cuda.tensor(torch.zeros(1000), device)
    release = hold(monkeypatch, "write_shard")
    saver = make_saver()
    for step in (1, 2):
        under_way = threading.Event()
        fake_torch.cuda.current_stream().add(under_way.wait)
        fake_torch.cuda.current_stream().add(lambda step=step: state.live.as_subclass(torch.Tensor).fill_(step))
        begin(saver, step)
        next_step = threading.Thread(target=saver.wait_copied)
        next_step.start()
        next_step.join(0.2)
        assert next_step.is_alive()
        under_way.set()
        next_step.join(WAIT_S)
        state.live.as_subclass(torch.Tensor).fill_(9)
        release.set()
        saver.finish()
        assert torch.equal(found(storage, step), torch.full((1000,), float(step)))
    assert fake_torch.cuda.contexts == {1}


def test_one_checkpoint_at_a_time(
    make_saver: Callable[..., Saver], state: State, storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = hold(monkeypatch, "commit_manifest")
    saver = make_saver()
    begin(saver, 1)
    second = threading.Thread(target=begin, args=(saver, 2))
    second.start()
    second.join(0.2)
    assert second.is_alive()  # waits for the first, however little memory it would take
    release.set()
    second.join(WAIT_S)
    saver.finish()
    assert step_folders(storage) == ["step-00000001", "step-00000002"]
    assert saver.take_stall_s() > 0.1
    assert saver.take_stall_s() == 0


def test_the_memory_of_the_copy_is_used_again(make_saver: Callable[..., Saver], state: State) -> None:
    saver = make_saver()
    places = set()
    for step in (1, 2, 3):
        begin(saver, step)
        saver.finish()
        places.add(saver._staging["0/weights"].data_ptr())
    assert len(places) == 1


def test_a_failed_save_is_reported_and_harms_no_other(
    make_saver: Callable[..., Saver], state: State, storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver = make_saver()
    begin(saver, 1)
    saver.finish()

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr("pipeline.train.saver.write_shard", full)
    begin(saver, 2)
    with pytest.raises(CheckpointError, match=r"cannot be written \(the disk is full\); make room and run the same"):
        saver.finish()
    with pytest.raises(CheckpointError, match="the disk is full"):
        saver.check()
    assert newest_valid(storage, "d").folder == "step-00000001"


def test_any_other_fault_of_a_store_is_one_sentence_too(
    make_saver: Callable[..., Saver], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("503 Slow Down")

    monkeypatch.setattr("pipeline.train.saver.write_shard", broken)
    saver = make_saver()
    begin(saver, 1)
    with pytest.raises(CheckpointError, match=r"could not be written to \(503 Slow Down\); the same command resumes"):
        saver.finish()


def test_a_rank_of_a_former_attempt_must_not_commit(
    make_saver: Callable[..., Saver], tmp_path: Path, storage: LocalStorage
) -> None:
    saver = make_saver()
    (tmp_path / ATTEMPT).write_text("another")
    begin(saver, 1)
    with pytest.raises(CheckpointError, match=r"a newer attempt has taken over this stage; this one ends$"):
        saver.finish()
    assert newest_valid(storage, "d").folder is None


def test_waiting_for_a_save_that_advances_is_a_sign_of_life(
    make_saver: Callable[..., Saver], monkeypatch: pytest.MonkeyPatch
) -> None:
    release = hold(monkeypatch, "commit_manifest")  # every rank's file is written
    beats = threading.Semaphore(0)
    saver = make_saver(beat=beats.release)
    begin(saver, 1)
    waiting = threading.Thread(target=saver.finish)
    waiting.start()
    assert beats.acquire(timeout=WAIT_S)
    release.set()
    waiting.join(WAIT_S)
    assert not waiting.is_alive()


def test_checkpoints_go_to_an_object_store(
    make_saver: Callable[..., Saver], state: State, s3: Path, tmp_path: Path
) -> None:
    (s3 / tmp_path.name).mkdir()
    url = f"s3://{tmp_path.name}/run/pretrain"
    saver = make_saver(url=url)
    state.live.fill_(3)
    begin(saver, 1)
    saver.finish()
    assert torch.equal(found(open_storage(url), 1), torch.full((1000,), 3.0))


@pytest.fixture(scope="module")
def kills(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What came of a kill at every boundary of the files of four saves."""
    command = [sys.executable, PROGRAM, str(tmp_path_factory.mktemp("kills"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_kill_at_any_boundary_of_a_save_leaves_a_valid_state(kills: list[dict[str, Any]]) -> None:
    *killed, undisturbed = kills
    assert len(killed) > 80
    assert all(result["killed"] for result in killed)
    assert (undisturbed["status"], undisturbed["found"]) == (0, {"step": 4, "whole": True})
    for result in kills:
        assert result["found"]["whole"], result
        assert result["reported"] <= result["found"]["step"] <= result["reported"] + 1, result


def test_a_run_goes_on_after_a_kill_at_any_boundary(kills: list[dict[str, Any]]) -> None:
    for result in kills:
        assert (result["again"], result["last"]) == (0, {"step": 4, "whole": True}), result
        assert result["folders"][-2:] == ["step-00000003", "step-00000004"], result
        assert result["files"][-2:] == [2, 2], result  # nothing is left of the killed attempt's
        if result["found"]["step"] < 4:  # else there was nothing more to save, and so to remove
            assert len(result["folders"]) == 2, result
