"""Every task on several ranks: its steps are those of the global batch, and a resume is as if nothing had happened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.checkpoints.manifest import verify
from pipeline.checkpoints.selection import step_folder
from pipeline.checkpoints.state_reader import StateReader
from pipeline.checkpoints.storage import LocalStorage

TASKS: dict[str, dict[str, Any]] = {  # type -> settings; a line for each task
    "classification": {"label_smoothing": 0.1},
    "segmentation": {"head": "conv", "label_smoothing": 0.1},
    "mae": {},
    "simmim": {},
}
SHARES, MICRO_BATCHES = [3, 0, 5], 4  # of each rank; more micro-batches than most have samples

pytestmark = pytest.mark.timeout(600)

Results = dict[str, Any]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where every task leaves its checkpoints."""
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def alone(run_ranks: Callable[..., list[Results]], tmp_path_factory: pytest.TempPathFactory) -> Results:
    """One rank with one micro-batch."""
    cases = {name: ["gradient", [{"type": name, **settings}, [8], 1]] for name, settings in TASKS.items()}
    cases |= {f"{name} judged": ["evaluated", [{"type": name, **settings}, [8]]] for name, settings in TASKS.items()}
    return run_ranks(1, tmp_path_factory.mktemp("one") / "ranks", cases)[0]


@pytest.fixture(scope="module")
def together(
    run_ranks: Callable[..., list[Results]], tmp_path_factory: pytest.TempPathFactory, root: Path
) -> list[Results]:
    """Three ranks with unequal shares."""
    cases: dict[str, Any] = {}
    for name, settings in TASKS.items():
        task, saved, again = {"type": name, **settings}, str(root / name), str(root / f"{name} again")
        cases[name] = ["gradient", [task, SHARES, MICRO_BATCHES]]
        cases[f"{name} judged"] = ["evaluated", [task, [3, 2, 3]]]
        cases[f"{name} saved"] = ["save_and_go_on", [2, "bf16", task, saved, SHARES]]
        cases[f"{name} again"] = ["resume", [2, "bf16", task, saved, again, SHARES]]
    return run_ranks(3, tmp_path_factory.mktemp("three") / "ranks", cases)


@pytest.mark.parametrize("name", TASKS)
def test_loss_and_gradient_are_those_of_the_global_batch(alone: Results, together: list[Results], name: str) -> None:
    """However many ranks and micro-batches share it, and with samples and pixels among it that do not count."""
    expected = alone[name]
    assert any(gradient.abs().max() > 1e-3 for gradient in expected["gradient"].values())
    for rank in together:
        assert rank[name]["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert rank[name]["gradient"].keys() == expected["gradient"].keys()
        for parameter, gradient in expected["gradient"].items():
            torch.testing.assert_close(rank[name]["gradient"][parameter], gradient, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", TASKS)
def test_an_evaluation_s_measures_and_files_are_those_of_one_rank(
    alone: Results, together: list[Results], name: str
) -> None:
    expected = alone[f"{name} judged"]
    assert expected["measures"]["samples"] == 7
    assert expected["files"]
    for rank in together:
        assert rank[f"{name} judged"]["measures"] == pytest.approx(expected["measures"], rel=1e-6)
    found = together[0][f"{name} judged"]["files"]
    assert found.keys() == expected["files"].keys()
    for file in (file for file in found if file.endswith(".csv")):
        assert found[file] == expected["files"][file]


@pytest.mark.parametrize("name", TASKS)
def test_resume_is_bit_identical(together: list[Results], root: Path, name: str) -> None:
    for rank in together:
        assert rank[f"{name} again"]["losses"] == rank[f"{name} saved"]["losses"]
    readers = []
    for run in (name, f"{name} again"):
        storage, folder = LocalStorage(root / run), step_folder(4)
        readers.append(StateReader(storage, folder, verify(storage, folder)))
    first, second = readers
    assert first.keys == second.keys
    for key in first.keys:
        one, other = first.whole(key), second.whole(key)
        assert one.keys() == other.keys()
        assert [parameter for parameter in one if not torch.equal(one[parameter], other[parameter])] == []
