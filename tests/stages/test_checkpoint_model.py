from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from huggingface_hub import ModelCard

from pipeline.checkpoints.manifest import Manifest, MeterState, commit_manifest
from pipeline.checkpoints.selection import step_folder
from pipeline.checkpoints.shard_file import Span, write_shard
from pipeline.checkpoints.storage import open_storage
from pipeline.cli.export import command as export_command
from pipeline.config.data import AugmentConfig, DataConfig, DatasetConfig
from pipeline.config.export import check_weights
from pipeline.config.train_stage import TrainStage
from pipeline.config.training import ModelConfig
from pipeline.errors import CheckpointError, ConfigError, ModelError
from pipeline.export import FORMATS
from pipeline.models.bundle import Bundle, Preprocess, load_bundle
from pipeline.models.minivit import MiniViT
from pipeline.models.variants import build_spec
from pipeline.shards.index import make_index
from pipeline.stages.checkpoint_model import checkpoint_bundle, weights_bundle
from pipeline.stages.folder import RUNNING, RunFolder, Status
from pipeline.stages.types.train import train_inputs
from pipeline.stream.source import Source

SPEC = build_spec("nano", image_size=8, channels=1, num_classes=3, depth=1, positions="sincos")
CLASSES = ["ankle boot", "bag", "coat"]
PREPROCESS = Preprocess((0.4,), (0.3,), 1, (8, 8), background=(0, 0, 0))
STAGE = TrainStage(
    type="pretrain",
    model=ModelConfig(variant="nano", image_size=8, channels=1),
    data=DataConfig(train="train"),
    duration="10 steps",
    global_batch_size=64,
)


def inputs(**settings: Any) -> dict[str, Any]:
    """As a status records them, with these settings of the stage."""
    stage = STAGE.model_copy(update=settings)
    config = DatasetConfig(shards="data", mean=PREPROCESS.mean, std=PREPROCESS.std, background=PREPROCESS.background)
    source = Source("train", make_index("data", []), config, AugmentConfig())
    found = train_inputs(stage, spec=SPEC, classes=CLASSES, seed=0, train=[source], val=None, init_from=None)
    return json.loads(json.dumps(found))


LOSSES = {4: 0.7, 6: 0.5, 8: 0.5, 10: None}  # validated but for the last
Begin = Callable[..., Path]


def weights(step: int) -> dict[str, torch.Tensor]:
    """What a model has at a step: every value differs, but buffers."""
    state = MiniViT.from_spec(SPEC).state_dict()
    return {name: value if name == "pos_embed" else torch.full_like(value, step) for name, value in state.items()}


def commit(place: str, step: int, loss: float | None, digest: str = "d") -> None:
    """The weights of a step, and their average, which is half of them."""
    storage, state = open_storage(place), weights(step)
    spans, offset = [], 0
    for name, value in state.items():
        spans.append(Span(name, 0, offset, value.numel()))
        offset += value.numel()
    flat = torch.cat([value.flatten() for value in state.values()])
    average = torch.cat([value.flatten() / (1 if name == "pos_embed" else 2) for name, value in state.items()])
    tensors = {"0/weights": flat, "0/ema": average}
    record = write_shard(storage, f"{step_folder(step)}/rank-0.safetensors", [spans], tensors)
    shapes = {name: list(value.shape) for name, value in state.items()}
    metrics = {} if loss is None else {"val/loss": loss}
    window = MeterState(0, 0, [[0.0]])
    manifest = Manifest(step, 8 * step, 1, 2, digest, SPEC.to_dict(), shapes, [record], metrics, window)
    commit_manifest(storage, step_folder(step), manifest)


@pytest.fixture
def begin(tmp_path: Path) -> Begin:
    """A stage that has begun and committed these checkpoints; returns the run's folder."""

    def make(stage_id: str = "pretrain", place: str = "checkpoints", **status: Any) -> Path:
        folder = RunFolder(tmp_path / "runs" / "quick").stage(stage_id)
        settings = {"checkpoints": place, "keep_best": "val/loss", **status}
        folder.write_status(Status(RUNNING, "pretrain", "d", inputs(ema=0.99), **settings))
        for step, loss in LOSSES.items():
            commit(str(folder.path / place) if "://" not in place else place, step, loss)
        return tmp_path / "runs" / "quick"

    return make


def assert_is_of(bundle: Bundle, step: int) -> None:
    expected = {name: value if name == "pos_embed" else value / 2 for name, value in weights(step).items()}
    assert bundle.state.keys() == expected.keys()
    assert all(torch.equal(bundle.state[name], value) for name, value in expected.items())
    assert (bundle.provenance["step"], bundle.provenance["samples"]) == (step, 8 * step)


@pytest.mark.parametrize(("which", "step"), [("best", 6), ("last", 10), ("step-4", 4), ("step-00000008", 8)])
@pytest.mark.parametrize("place", ["checkpoints", "memory://bucket/quick/pretrain"])
def test_the_average_of_the_chosen_checkpoint(begin: Begin, place: str, which: str, step: int) -> None:
    run = begin(place=place)
    for path in (run, run / "pretrain", run / "stages" / "pretrain"):
        bundle = checkpoint_bundle(path, which)
        assert_is_of(bundle, step)
    assert (bundle.spec, bundle.classes) == (SPEC, CLASSES)
    assert bundle.preprocess == PREPROCESS
    assert bundle.provenance["metrics"] == ({} if LOSSES[step] is None else {"val/loss": LOSSES[step]})
    assert bundle.provenance["checkpoint"].endswith(f"/step-{step:08d}")
    assert [bundle.provenance[name] for name in ("stage", "ema", "digest")] == ["pretrain", 0.99, "d"]


@pytest.mark.parametrize(
    ("which", "value", "step"),
    [("last", 10, 10), ("ema", 5, 10), ("best", 3, 6), ("step-4", 2, 4), ("soup-2", 4.5, 10), ("soup-4", 3.5, 10)],
)
def test_weights_of_a_kind(begin: Begin, which: str, value: float, step: int) -> None:
    """As optimised, averaged while training, or the mean of the averages of several checkpoints."""
    bundle = weights_bundle(begin() / "pretrain", which)
    for name, tensor in bundle.state.items():
        expected = weights(step)[name] if name == "pos_embed" else torch.full_like(tensor, value)
        torch.testing.assert_close(tensor, expected)
    assert (bundle.provenance["weights"], bundle.provenance["step"]) == (which, step)
    assert isinstance(bundle.provenance["checkpoint"], list) == which.startswith("soup")


def test_weights_that_are_not_there_are_refused(begin: Begin) -> None:
    run = begin()
    with pytest.raises(
        CheckpointError, match="soup-5 is the mean of 5 checkpoints, but only 4 are committed; use fewer"
    ):
        weights_bundle(run, "soup-5")
    with pytest.raises(ConfigError, match=r"^--weights: found 'soup-1', expected last, ema, best, step-N"):
        check_weights("soup-1")
    status = RunFolder(run).stage("pretrain").status()
    assert status is not None
    del status.inputs["settings"]["ema"]
    RunFolder(run).stage("pretrain").write_status(status)
    with pytest.raises(CheckpointError, match="pretrain: has no moving average of its weights; use last"):
        weights_bundle(run, "ema")


def test_settings_at_their_defaults_are_not_recorded(begin: Begin) -> None:
    folder = begin() / "stages" / "pretrain"
    folder.joinpath("status.json").write_text(
        json.dumps({**json.loads((folder / "status.json").read_text()), "inputs": inputs()})
    )
    assert checkpoint_bundle(folder, "best").provenance["ema"] is None


def test_a_run_that_was_moved_is_read_where_it_is(begin: Begin, tmp_path: Path) -> None:
    begin().rename(tmp_path / "elsewhere")
    assert_is_of(checkpoint_bundle(tmp_path / "elsewhere" / "pretrain", "best"), 6)


def test_former_settings_are_not_the_stages(begin: Begin) -> None:
    run = begin()
    commit(str(run / "stages/pretrain/checkpoints"), 12, 0.1, digest="former")
    assert_is_of(checkpoint_bundle(run, "best"), 6)
    assert_is_of(checkpoint_bundle(run, "last"), 10)


@pytest.mark.parametrize("name", [name for name, form in FORMATS.items() if not form.check])
def test_the_command_writes_it_in_every_format(begin: Begin, tmp_path: Path, name: str) -> None:
    arguments = [begin() / "pretrain", "--checkpoint", "best", "--format", name, "--out", tmp_path / "out", "--license"]
    arguments += ["mit", "--fixed-size"]
    result = CliRunner().invoke(export_command, [str(argument) for argument in arguments], catch_exceptions=False)
    assert Path(result.output.strip()).exists()
    assert ModelCard.load(tmp_path / "out" / "README.md").data.license == "mit"
    if name == "safetensors":
        assert_is_of(load_bundle(tmp_path / "out"), 6)


@pytest.mark.parametrize(
    ("which", "status", "message"),
    [
        ("step-5", {}, "pretrain: found no committed checkpoint of step 5; use best, last or one of step-4, step-6, "),
        (
            "best",
            {"keep_best": None},
            "pretrain: its checkpoint.keep_best is not set, so no checkpoint is kept as the best",
        ),
        (
            "best",
            {"keep_best": "val/top5"},
            "pretrain: none of its checkpoints was validated at its own step; use last",
        ),
    ],
)
def test_what_is_not_there_is_refused_with_what_is(
    begin: Begin, which: str, status: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError) as caught:
        checkpoint_bundle(begin(**status), which)
    assert message in str(caught.value)


def test_a_name_that_is_no_checkpoint_s_is_a_wrong_argument(begin: Begin) -> None:
    there = "step-4, step-6, step-8, step-10"
    with pytest.raises(ConfigError, match=f"^--checkpoint: found 'newest', expected best, last or one of {there}$"):
        checkpoint_bundle(begin(), "newest")


def test_a_damaged_checkpoint_is_refused(begin: Begin) -> None:
    run = begin()
    victim = run / "stages/pretrain/checkpoints/step-00000006/rank-0.safetensors"
    data = bytearray(victim.read_bytes())
    data[-1] ^= 1
    victim.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"rank-0.safetensors does not match the SHA-256 .*; use another one"):
        checkpoint_bundle(run, "best")


def test_one_of_several_stages_must_be_named(begin: Begin, tmp_path: Path) -> None:
    begin("pretrain/nano")
    run = begin("pretrain/micro")
    for path in (run, run / "pretrain"):
        with pytest.raises(CheckpointError, match=r"found 2 training stages; name one of .*pretrain/micro, .*/nano$"):
            checkpoint_bundle(path, "last")
    assert_is_of(checkpoint_bundle(run / "pretrain/nano", "last"), 10)
    with pytest.raises(ModelError, match=r"runs/none: does not exist"):
        checkpoint_bundle(tmp_path / "runs/none", "last")


def test_nothing_is_committed_yet(begin: Begin) -> None:
    run = begin()
    for folder in (run / "stages/pretrain/checkpoints").iterdir():
        (folder / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"pretrain: has no committed checkpoint yet"):
        checkpoint_bundle(run, "last")
