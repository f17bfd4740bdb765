from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline.config.load import parse_config
from pipeline.config.task import task_class
from pipeline.metrics.pictures import save_picture
from pipeline.models.bundle import Bundle, Preprocess, load_bundle
from pipeline.models.minivit import MiniViT
from pipeline.models.variants import build_backbone
from pipeline.shards.build import build_index
from pipeline.shards.write import TarWriter
from pipeline.stages.context import RunContext, open_datasets
from pipeline.stages.folder import Status
from pipeline.stages.progress import Progress
from pipeline.stages.resolve import stage_branches
from pipeline.stages.types.train.run import TrainStageRun
from pipeline.tasks.task import task_of
from pipeline.text.training import train_tokenizer
from pipeline.train.ledger import MetricsLedger


@pytest.fixture
def stage(context: RunContext, make_shards: Callable[..., None], raw: dict[str, Any]) -> TrainStageRun:
    """The first branch of the pipeline, which has not run."""
    for prefix in ("train", "test"):
        make_shards(prefix, 96, 48, [f"class {label}" for label in range(10)])
        del raw["datasets"][prefix]["make"]
    context.config = parse_config(raw, "c")
    context.datasets = open_datasets(context.config)
    branch = next(branch for branch in stage_branches(context.config) if branch.id == "pretrain/nano")
    stage = TrainStageRun(context, branch)
    stage.folder.path.mkdir(parents=True)
    return stage


def result(stage: TrainStageRun, rows: list[tuple[int, dict[str, float]]]) -> dict[str, Any]:
    ledger = MetricsLedger(stage.folder.path, 0)
    for step, row in rows:
        ledger.append(step, step * 16, row)
    ledger.close()
    return stage._result(SimpleNamespace(total_steps=9))


def test_a_stage_leaves_what_its_first_and_last_validations_measured(stage: TrainStageRun) -> None:
    first = {"val/loss": 2.0, "val/accuracy": 0.25, "val/samples": 96.0}
    last = {"val/loss": 1.0, "val/accuracy": 0.5, "val/samples": 96.0}
    rows = [(0, first), (5, {"train/loss": 1.5, "speed/images_per_s": 7.0}), (9, last), (9, {"data/bad_samples": 0.0})]
    found = result(stage, rows)
    assert found["start"] == {"loss": 2.0, "accuracy": 0.25}
    assert found["measures"] == {"loss": 1.0, "accuracy": 0.5}
    assert found["images_per_s"] == 7.0


def test_a_stage_without_validation_has_no_measures(stage: TrainStageRun) -> None:
    found = result(stage, [(9, {"train/loss": 1.5})])
    assert (found["start"], found["measures"]) == (None, {})


def test_pictures_that_a_stage_leaves_are_tracked(stage: TrainStageRun) -> None:
    folder = stage.folder.path
    assert (folder / "pictures", "pictures") not in stage.artifacts()
    save_picture(folder, "one", np.zeros((2, 2), np.uint8), "title", "caption")
    assert (folder / "pictures", "pictures") in stage.artifacts()


def test_weights_are_tracked_once_as_the_logged_model(stage: TrainStageRun) -> None:
    assert stage.folder.model not in {path for path, _ in stage.artifacts()}


def test_a_stage_keeps_the_text_tower_and_tokenizer_of_its_source_or_says_so(
    context: RunContext, raw: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with TarWriter(tmp_path / "pairs" / "pairs-0.tar") as tar:
        tar.write("0", {"png": b"not decoded here", "txt": b"a red boot"})
        tar.finish()
    build_index(str(tmp_path / "pairs"), workers=1)
    settings = {"text": {"length": 8, "dim": 32, "depth": 1, "num_heads": 2}, "tokenizer": {"size": 260}}
    spec = task_of(task_class("clip")(**settings)).model_spec(build_backbone("nano", image_size=28, channels=1), 0)
    tokenizer = train_tokenizer(["a red boot"], 260, 8)
    preprocess = Preprocess((0.5,), (0.5,), 1, (28, 28), tokenizer=tokenizer)
    Bundle(MiniViT.from_spec(spec).state_dict(), spec, preprocess).save(tmp_path / "source")
    (tmp_path / "other.json").write_text(train_tokenizer(["something else"], 262, 8).content)

    goes_on = raw["stages"]["larger"] | {"init_from": "./source", "data": {"train": "train", "lanes": 1}}
    goes_on |= {"global_batch_size": 2}
    tasks = {"keeps": {"type": "clip"}, "names": {"type": "clip", "tokenizer": "./other.json"}}
    raw["datasets"] = {"train": {"shards": "pairs/pairs-0.tar", "mean": [0.5], "std": [0.5]}}
    raw["stages"] = {name: goes_on | {"task": task} for name, task in tasks.items()}
    context.config = parse_config(raw, "c")
    context.datasets = open_datasets(context.config)
    context.progress = Progress()  # made here, it speaks where this test listens
    branches = {branch.id: branch for branch in stage_branches(context.config)}

    def started(name: str) -> tuple[dict[str, int], str]:
        stage = TrainStageRun(context, branches[name])
        init = stage._prepare_start(Status("running", "finetune", "d", {}))
        assert init is not None
        assert load_bundle(init).preprocess.tokenizer == stage.setup.preprocess.tokenizer
        return json.loads((init.parent / "surgery.json").read_text())["counts"], capsys.readouterr().err

    counts, told = started("keeps")
    assert counts["initialised"] == 0
    assert "tokenizer" not in told
    counts, told = started("names")
    assert counts["initialised"] > 10
    assert "its source's tokenizer has 260 tokens, but it reads texts with another, of 262, which" in told
    assert "its head 'text_tower' (text_tower) is initialised" in told
