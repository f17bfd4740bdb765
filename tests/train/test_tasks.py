"""Every task on several ranks: its steps are those of the global batch, and a resume changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.checkpoints.manifest import verify_checkpoint
from pipeline.checkpoints.selection import step_folder
from pipeline.checkpoints.state_reader import StateReader
from pipeline.checkpoints.storage import LocalStorage
from pipeline.config.task import task_types
from pipeline.models.bundle import Bundle, Preprocess
from pipeline.models.minivit import MiniViT
from pipeline.models.variants import build_spec

TEACHER = "teacher"  # stands for the path of a bundle
VIEWS = {"global": {"count": 2}, "local": {"count": 3, "size": 4}}
TASKS: dict[str, dict[str, Any]] = {  # name -> settings; a line for each task
    "classification": {"label_smoothing": 0.1},
    "segmentation": {"head": "conv", "label_smoothing": 0.1},
    "depth": {"head_options": {"hidden": 8}},
    "keypoints": {"flip_pairs": [["0", "2"]], "flip_test": True},
    "detection": {"head_options": {"finest": 2, "coarsest": 8, "hidden": 16}},
    "detection by queries": {"type": "detection", "head": "queries", "head_options": {"queries": 5, "depth": 2}},
    "mae": {},
    "simmim": {},
    "lejepa": {"views": VIEWS, "slices": 16},
    "simdino": {"views": VIEWS, "momentum": 0.9, "patch_loss": {"mask_ratio": 0.5}},
    "distillation": {"signal": "soft", "label_smoothing": 0.1, "teacher": TEACHER},
    "distillation, sharded": {"type": "distillation", "signal": "hard", "teacher": TEACHER, "shard": True},
    "distillation of features": {"type": "distillation", "loss": "smooth_l1", "teacher": TEACHER},
    "clip": {"text": {"length": 6, "dim": 16, "depth": 2}, "embedding_dim": 24, "tokenizer": {"size": 270}},
    "clip, sigmoid": {"type": "clip", "loss": "sigmoid", "text": {"length": 6}, "tokenizer": {"size": 270}},
}
TRAINS_NOTHING = {"zero_shot"}
WITHOUT_FILES = {"distillation of features"}  # an evaluation of these leaves measures alone
SHARES, MICRO_BATCHES = [3, 0, 5], 4  # of each rank; more micro-batches than most have samples

pytestmark = pytest.mark.timeout(600)

Results = dict[str, Any]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where every task leaves its checkpoints."""
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Name -> settings with type; the teacher is a classifier of another size, patch, width and normalisation."""
    torch.manual_seed(1)
    spec = build_spec(
        "nano", image_size=12, patch_size=3, num_classes=3, channels=1, depth=2, embed_dim=48, num_heads=2
    )
    state = {
        name: tensor + 0.1 * torch.randn_like(tensor) for name, tensor in MiniViT.from_spec(spec).state_dict().items()
    }
    teacher = tmp_path_factory.mktemp("teacher") / "model"
    Bundle(state, spec, Preprocess((0.3,), (0.2,), 1, (12, 12)), ["2", "0", "1"]).save(teacher)
    places = {TEACHER: str(teacher)}
    return {
        name: {
            "type": name,
            **{key: places.get(value, value) if isinstance(value, str) else value for key, value in settings.items()},
        }
        for name, settings in TASKS.items()
    }


@pytest.fixture(scope="module")
def alone(
    run_ranks: Callable[..., list[Results]], tmp_path_factory: pytest.TempPathFactory, tasks: dict[str, dict[str, Any]]
) -> Results:
    """One rank with one micro-batch."""
    cases = {name: ["gradient", [task, [8], 1]] for name, task in tasks.items()}
    cases |= {f"{name} judged": ["evaluated", [task, [8]]] for name, task in tasks.items()}
    return run_ranks(1, tmp_path_factory.mktemp("one") / "ranks", cases)[0]


@pytest.fixture(scope="module")
def together(
    run_ranks: Callable[..., list[Results]],
    tmp_path_factory: pytest.TempPathFactory,
    root: Path,
    tasks: dict[str, dict[str, Any]],
) -> list[Results]:
    """Three ranks with unequal shares."""
    cases: dict[str, Any] = {}
    for name, task in tasks.items():
        saved, again = str(root / name), str(root / f"{name} again")
        cases[name] = ["gradient", [task, SHARES, MICRO_BATCHES]]
        cases[f"{name} judged"] = ["evaluated", [task, [3, 2, 3]]]
        cases[f"{name} saved"] = ["save_and_go_on", [2, "bf16", task, saved, SHARES]]
        cases[f"{name} again"] = ["resume", [2, "bf16", task, saved, again, SHARES]]
    cases["replayed"] = ["replayed", [tasks["simdino"], str(root / "simdino")]]
    return run_ranks(3, tmp_path_factory.mktemp("three") / "ranks", cases)


def test_every_task_is_tried() -> None:
    tried = {settings.get("type", name) for name, settings in TASKS.items()}
    assert tried == set(task_types()) - TRAINS_NOTHING


@pytest.mark.parametrize("name", TASKS)
def test_loss_and_gradient_are_those_of_the_global_batch(alone: Results, together: list[Results], name: str) -> None:
    """However many ranks and micro-batches share it, and with samples and pixels among it that do not count."""
    expected = alone[name]
    assert any(gradient.abs().max() > 1e-3 for gradient in expected["gradient"].values())
    for rank in together:
        assert rank[name]["loss"] == pytest.approx(expected["loss"], rel=1e-5, abs=1e-6)
        assert rank[name]["gradient"].keys() == expected["gradient"].keys()
        for parameter, gradient in expected["gradient"].items():
            torch.testing.assert_close(rank[name]["gradient"][parameter], gradient, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", TASKS)
def test_an_evaluation_s_measures_and_files_are_those_of_one_rank(
    alone: Results, together: list[Results], name: str
) -> None:
    expected = alone[f"{name} judged"]
    assert expected["measures"]["samples"] == 7
    assert bool(expected["files"]) == (name not in WITHOUT_FILES)
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
        readers.append(StateReader(storage, folder, verify_checkpoint(storage, folder)))
    first, second = readers
    assert first.keys == second.keys
    for key in first.keys:
        one, other = first.whole(key), second.whole(key)
        assert one.keys() == other.keys()
        assert [parameter for parameter in one if not torch.equal(one[parameter], other[parameter])] == []


def test_a_replay_has_the_weights_of_the_checkpoint_and_those_of_its_teacher(
    together: list[Results], root: Path
) -> None:
    storage, folder = LocalStorage(root / "simdino"), step_folder(2)
    reader = StateReader(storage, folder, verify_checkpoint(storage, folder))
    for found, key in (("model", "weights"), ("teacher", "teacher")):
        state, kept = together[0]["replayed"][found], reader.whole(key)
        assert kept
        assert [name for name, value in kept.items() if not torch.equal(state[name], value)] == []
    weights, teacher = reader.whole("weights"), reader.whole("teacher")
    assert any(not torch.equal(weights[name], value) for name, value in teacher.items()), "the teacher lags behind"
