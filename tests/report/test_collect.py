import json
from pathlib import Path

import pytest

from pipeline.errors import CheckpointError
from pipeline.metrics.schema import LOSS, Schema
from pipeline.report.collect import read_run


def test_fan_outs_are_branches_and_their_best_is_what_the_next_stage_starts_from(built_run: Path) -> None:
    run = read_run(built_run)
    assert [b.id for b in run.trained] == ["pretrain/nano", "pretrain/micro", "finetune-56", "finetune-patch2"]
    assert [b.id for b in run.selected("pretrain")] == ["pretrain/micro"]
    assert [b.id for b in run.parents(run.by_id["finetune-56"])] == ["pretrain/micro"]
    assert run.by_id["finetune-56"].variant == "micro"  # the config leaves it to the source


def test_what_a_stage_recorded_as_its_source_goes_before_what_accuracy_suggests(finished_run: Path) -> None:
    status = finished_run / "stages" / "finetune-56" / "status.json"
    status.write_text(json.dumps({**json.loads(status.read_text()), "init_from": "pretrain/nano"}))
    run = read_run(finished_run)
    assert [b.id for b in run.parents(run.by_id["finetune-56"])] == ["pretrain/nano"]


def test_evaluations_belong_to_the_models_they_judge(built_run: Path) -> None:
    run = read_run(built_run)
    found = next(e for e in run.evaluations if e.model == "pretrain/nano")
    assert run.tested(run.by_id["pretrain/nano"]) == found.measures["accuracy"]
    assert found.dataset == "test"
    assert found.confusion is not None
    assert found.confusion[:, 2].sum() == 10_000


def test_a_replayed_step_counts_once_and_a_torn_line_not_at_all(finished_run: Path) -> None:
    metrics = finished_run / "stages" / "finetune-56" / "metrics.jsonl"
    odd = ['{"step": 240, "train/loss": 9.5}', '{"step": 245, "train/loss": NaN}', '{"step": null, "train/loss": 1}']
    with metrics.open("a") as file:
        file.write("\n".join([*odd, '{"step": 250, "tra']))
    loss = read_run(finished_run).by_id["finetune-56"].series("train/loss")
    assert loss.steps.tolist() == list(range(5, 241, 5))
    assert loss.last == 9.5


def test_an_unfinished_run_is_read_as_far_as_it_goes(unfinished_run: Path) -> None:
    run = read_run(unfinished_run)
    states = {branch.id: branch.state for branch in run.branches}
    assert states["pretrain/nano"] == "running"
    assert states["pretrain/micro"] == "failed"
    assert states["finetune-56"] == "pending"
    assert [b.id for b in run.parents(run.by_id["finetune-56"])] == ["pretrain/nano", "pretrain/micro"]


@pytest.mark.parametrize("content", [None, "stages: [", "name: x\n"])
def test_a_folder_without_a_readable_pipeline_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "pipeline.yaml").write_text(content)
    with pytest.raises(CheckpointError, match=r"pipeline\.yaml"):
        read_run(tmp_path)


def test_the_best_of_a_fan_out_is_what_its_own_measure_says(finished_run: Path) -> None:
    """Without a value for one branch, or with one unfinished, any of them may be meant."""
    schema = Schema((LOSS,), "loss").to_dict()
    homes = {name: finished_run / "stages" / "pretrain" / name for name in ("nano", "micro")}
    for (name, home), loss in zip(homes.items(), (0.2, 0.9), strict=True):
        status = json.loads((home / "status.json").read_text())
        told = {"schema": schema, "result": {"measures": {"loss": loss}}}
        (home / "status.json").write_text(json.dumps(status | told))
        assert read_run(finished_run).by_id[f"pretrain/{name}"].measure == LOSS
    run = read_run(finished_run)
    assert [b.id for b in run.selected("pretrain")] == ["pretrain/nano"]
    assert run.tested(run.by_id["pretrain/nano"]) == 0.4
    status = json.loads((homes["micro"] / "status.json").read_text())
    (homes["micro"] / "status.json").write_text(json.dumps({**status, "result": {"measures": {}}}))
    assert len(read_run(finished_run).selected("pretrain")) == 2
