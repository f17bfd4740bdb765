import json
from dataclasses import replace
from pathlib import Path

from pipeline.metrics.accuracy import CLASSIFICATION
from pipeline.metrics.schema import LOSS, Measure, Schema
from pipeline.models.model_costs import count_parameters
from pipeline.report.collect import read_run
from pipeline.report.records import Evaluation, ProbeRecord
from pipeline.report.tables import (
    ClassTable,
    all_events,
    class_table,
    environment,
    header_facts,
    measures_with_intervals,
    missing,
    probe_table,
    result_rows,
    run_state,
    surgery_tables,
    total_seconds,
)
from pipeline.report.text import NOTHING, count_text


def test_a_row_for_each_branch_says_how_it_started_and_ended(built_run: Path) -> None:
    run = read_run(built_run)
    nano, micro, finer, _ = result_rows(run)
    assert (nano.start, nano.end, nano.image_size, nano.patch) == ("10.0 %", "79.0 %", "28", "4")
    assert (finer.start, finer.end, finer.image_size, finer.wall_time) == ("71.0 %", "85.7 %", "56", "2 min 10 s")
    assert (nano.chosen, micro.chosen, finer.chosen) == (False, True, False)
    spec = run.by_id["finetune-56"].spec
    assert spec is not None
    assert finer.parameters == count_text(count_parameters(spec))


def test_what_is_not_known_yet_is_a_dash(unfinished_run: Path) -> None:
    run = read_run(unfinished_run)
    row = result_rows(run)[2]
    assert {row.parameters, row.start, row.end, row.test, row.wall_time, row.speed} == {NOTHING}
    assert row.image_size == "56"


def test_a_run_is_as_well_as_its_worst_stage(built_run: Path, unfinished_run: Path) -> None:
    assert run_state(read_run(built_run)) == "finished"
    assert run_state(read_run(unfinished_run)) == "failed"
    (unfinished_run / "stages" / "pretrain" / "micro" / "status.json").unlink()
    assert run_state(read_run(unfinished_run)) == "running"
    (unfinished_run / "stages" / "pretrain" / "nano" / "status.json").unlink()
    assert run_state(read_run(unfinished_run)) == "pending"


def test_what_is_missing_is_named_with_its_reason(built_run: Path, unfinished_run: Path) -> None:
    assert missing(read_run(built_run)) == []
    told = missing(read_run(unfinished_run))
    assert told[0] == "pretrain/nano is still running at step 100."
    assert told[1] == "pretrain/micro failed: cluster: 2 workers ask for 8 CPUs, there are 2."
    assert told[2] == "finetune-56 has not started."


def test_wall_time_of_branches_side_by_side_counts_once(built_run: Path) -> None:
    facts = dict(header_facts(read_run(built_run)))
    assert facts["Wall time"] == "8 min 11 s"
    assert facts["Stages finished"] == "6 of 6"
    assert len(facts["Config digest"]) == 12


def test_time_between_attempts_does_not_count(finished_run: Path) -> None:
    """The first attempt failed, the second was killed after its last row, the third finished."""
    home = finished_run / "stages" / "finetune-56"
    status = json.loads((home / "status.json").read_text())
    began = status["started"]
    total = total_seconds(read_run(finished_run))
    ended = status["ended"]
    status["spans"] = [[began - 10_000, began - 9_990], [began - 5_000], [began, ended]]
    status["started"] = began - 10_000
    (home / "status.json").write_text(json.dumps(status))
    with (home / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 1, "time": began - 4_980}) + "\n")
    run = read_run(finished_run)
    assert run.by_id["finetune-56"].seconds == 10 + 20 + ended - began
    assert total_seconds(run) == total + 10 + 20


def test_surgery_lists_what_changed_and_counts_the_rest(built_run: Path) -> None:
    finer, finest = surgery_tables(read_run(built_run))
    assert finer.source == "pretrain/micro"
    assert [(row.tensor, row.action) for row in finer.rows] == [("pos_embed", "resized")]
    assert {row.tensor for row in finest.rows} == {"patch_embed.proj.weight"}
    assert "copied" in finer.summary


def test_events_come_in_the_order_of_time(finished_run: Path) -> None:
    home = finished_run / "stages" / "pretrain" / "nano"
    (home / "events.jsonl").write_text(json.dumps({"time": 5.0, "event": "passed_over", "message": "torn"}) + "\n")
    assert [event.kind for event in all_events(read_run(finished_run))] == ["passed_over", "restart", "resume"]


def test_versions_the_run_recorded_go_before_those_of_this_machine(finished_run: Path) -> None:
    assert "torch" in dict(environment(read_run(finished_run)))
    (finished_run / "run.json").write_text(json.dumps({"environment": {"torch": "9.9"}}))
    assert environment(read_run(finished_run)) == [("torch", "9.9")]


def test_figures_of_classes_are_shown_whatever_they_are() -> None:
    rows = [{"model": "a", "class": name, "pixels": "12345", "iou": iou} for name, iou in (("7", "0.81234"), ("b", ""))]
    evaluation = Evaluation("test", "test", "a", [], CLASSIFICATION, {}, 9, 0, None, rows)
    table = class_table(evaluation)
    assert table == ClassTable(["class", "pixels", "iou"], [["7", "12,345", "0.812"], ["b", "12,345", NOTHING]])
    assert class_table(replace(evaluation, per_class=rows * 101)) is None
    assert class_table(replace(evaluation, per_class=[])) is None


def test_measures_are_shown_with_their_intervals() -> None:
    error = Measure("absrel", "AbsRel", "lower")
    schema = Schema((error, Measure("delta", "Delta < 1.25", "higher", True), LOSS), "delta")
    found, ends = {"absrel": 0.13524, "delta": 0.861}, {"absrel": [0.1312, 0.1391], "delta": [0.85, 0.87]}
    evaluation = Evaluation("test", "test", "a", [], schema, found, 9, 0, None, intervals=ends)
    assert measures_with_intervals(evaluation) == [
        ("Delta < 1.25", "86.10 % (85.0 to 87.0)"),
        ("AbsRel", "0.1352 (0.131 to 0.139)"),
    ]


def test_a_row_for_each_model_whose_features_were_judged() -> None:
    found = {"knn": 0.8125, "map": 0.5, "intervals": {"knn": [0.8, 0.825]}, "chosen": {"k": 20, "queries": 10000}}
    models = {"mae": found, "pixels": {"knn": 0.75, "intervals": {}, "chosen": {"k": 5}}}
    schema = Schema((Measure("knn", "kNN accuracy", "higher", True), Measure("map", "mAP", "higher", True)), "knn")
    table = probe_table(ProbeRecord("probe", "train", "test", "both", schema, models))
    assert table.columns == ["model", "kNN accuracy", "mAP", "k", "queries"]
    assert table.rows == [
        ["mae", "81.25 % (80.0 to 82.5)", "50.00 %", "20", "10,000"],
        ["pixels", "75.00 %", NOTHING, "5", NOTHING],
    ]
