from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.config.load import parse_config
from pipeline.config.train_stage import TrainStage
from pipeline.models.bundle import Bundle
from pipeline.models.minivit import MiniViT
from pipeline.stages.context import RunContext
from pipeline.stages.folder import FINISHED, INTERRUPTED, Status
from pipeline.stages.inputs import inputs_digest
from pipeline.stages.planner import plan, read_statuses
from pipeline.stages.resolve import stage_branches
from pipeline.stages.stage_type import stage_type

ALL = ["pretrain/nano", "pretrain/micro", "larger", "finer", "evaluate", "export", "report"]

RESULT = {"measures": {"accuracy": 0.5}}


@pytest.fixture(autouse=True)
def finished(context_with_shards: RunContext) -> None:
    """All stages have finished, as a run leaves them."""
    context = context_with_shards
    for branch in stage_branches(context.config):
        run: Any = stage_type(branch.stage).start(context, branch)
        folder, inputs = context.folder.stage(branch.id), run.inputs()
        status = Status(FINISHED, branch.stage.type, inputs_digest(inputs), inputs, ended=1.0, result=RESULT)
        if isinstance(branch.stage, TrainStage):
            setup = run.setup
            state = MiniViT.from_spec(setup.spec).state_dict()
            Bundle(state, setup.spec, setup.preprocess, setup.classes).save(folder.model)
        if branch.stage.type in ("finetune", "export"):
            status.init_from = (run.setup if isinstance(branch.stage, TrainStage) else run).source.name
        folder.write_status(status)


def planned(raw: dict[str, Any]) -> dict[str, str | None]:
    """Why each branch would begin anew."""
    config = parse_config(json.loads(json.dumps(raw)), "c")
    return {stage.id: stage.runs_again for stage in plan(config, statuses=read_statuses(config)).stages}


def test_what_a_run_would_skip_the_plan_skips(raw: dict[str, Any], context: RunContext) -> None:
    result = plan(context.config, statuses=read_statuses(context.config))
    assert [stage.id for stage in result.stages if stage.skipped] == ALL
    raw["stages"]["larger"]["log_every"] = 3
    raw["stages"]["evaluate"]["batch_size"] = 7
    assert set(planned(raw).values()) == {None}


@pytest.mark.parametrize(
    ("change", "first", "reason"),
    [
        (lambda raw: raw["datasets"]["train"].update(image_key="left.png"), 0, "train.train.image_key (png;jpg;jpeg;"),
        (lambda raw: raw["stages"]["larger"].update(ema=0.9), 2, "settings.ema (default to 0.9) changed"),
        (lambda raw: raw["stages"]["finer"]["model"].update(patch_size=4), 3, "settings.model.patch_size (2 to 4)"),
        (lambda raw: raw["stages"]["finer"].update(init_from="pretrain/nano"), 3, "it started from larger"),
        (lambda raw: raw["stages"]["evaluate"].update(models=["finer", "larger"]), 4, "models."),
        (lambda raw: raw["stages"]["export"].update(model="larger"), 5, "it started from finer"),
    ],
)
def test_a_change_is_reported_with_all_that_it_touches(
    raw: dict[str, Any], change: Callable[[Any], None], first: int, reason: str
) -> None:
    change(raw)
    reasons = planned(raw)
    assert reason in (reasons[ALL[first]] or "")
    assert not any(reasons[branch_id] for branch_id in ALL[:first])
    assert reasons["report"]
    if first <= 3:
        assert reasons["export"] == "finer runs again"


def test_an_evaluation_follows_its_data(raw: dict[str, Any]) -> None:
    """The pretraining stages validate on the same data, and all others start from them."""
    raw["datasets"]["test"]["image_key"] = "left.png"
    reasons = planned(raw)
    assert reasons["pretrain/micro"] == "val.image_key (png;jpg;jpeg;webp to left.png) changed"
    assert reasons["evaluate"] == "pretrain/nano runs again"


def test_a_source_that_is_not_finished_makes_new_weights(raw: dict[str, Any], context: RunContext) -> None:
    folder = context.folder.stage("larger")
    status = folder.status()
    assert status is not None
    status.state = INTERRUPTED
    folder.write_status(status)
    reasons = planned(raw)
    assert (reasons["larger"], reasons["finer"]) == (None, "larger is not finished")
    assert reasons["export"] == "finer runs again"


def test_a_status_of_another_version_runs_again(raw: dict[str, Any], context: RunContext) -> None:
    folder = context.folder.stage("pretrain/micro")
    status = folder.status()
    assert status is not None
    del status.inputs["version"]
    folder.write_status(status)
    assert (planned(raw)["pretrain/micro"] or "").startswith("another version of this package")


def test_data_that_is_gone_is_no_change(raw: dict[str, Any]) -> None:
    raw["datasets"]["train"] |= {"shards": "gone", "make": "fashion-mnist"}
    assert planned(raw)["pretrain/nano"] is None
