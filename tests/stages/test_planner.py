from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipeline.config.cluster import ClusterConfig
from pipeline.config.load import parse_config
from pipeline.config.schema import PipelineConfig
from pipeline.errors import ConfigError
from pipeline.models.model_costs import count_parameters, forward_flops, head_parameters
from pipeline.models.model_spec import ModelSpec
from pipeline.stages.folder import RunFolder, Status
from pipeline.stages.inputs import VERSION
from pipeline.stages.plan import Plan, StagePlan
from pipeline.stages.plan_tables import render
from pipeline.stages.planner import plan, read_statuses

CLASSES = [f"class {number}" for number in range(10)]


@pytest.fixture
def with_data(make_shards: Callable[..., None]) -> None:
    make_shards("train", 100, 30, CLASSES)
    make_shards("test", 21, 30, CLASSES)


@pytest.fixture
def without_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def ranks(result: Plan) -> int:
    """Of the first stage."""
    training = result.stages[0].training
    assert training is not None
    return training.world_size


def stage(result: Plan, branch_id: str) -> StagePlan:
    return next(s for s in result.stages if s.id == branch_id)


def text(result: Plan) -> str:
    console = Console(width=160)
    with console.capture() as capture:
        console.print(render(result))
    return capture.get()


@pytest.mark.usefixtures("with_data")
def test_amounts_come_from_the_index(config: PipelineConfig) -> None:
    result = plan(config)
    train = result.datasets[0]
    assert (train.state, train.num_shards, train.samples, train.samples_per_shard) == ("ready", 4, 100, (10, 30))
    assert train.classes == 10
    training = stage(result, "pretrain/nano").training
    assert training is not None
    assert (training.samples_per_epoch, training.left_out_per_epoch) == (96, 4)  # 8 lanes of 12
    assert (training.steps, training.samples, training.epochs) == (18, 288, 3)  # 3 x 96 / 16
    assert stage(result, "evaluate").evaluates == 21
    assert result.notes == []


@pytest.mark.usefixtures("with_data")
def test_gpus_that_no_stage_asks_for_are_noted(config: PipelineConfig, devices: Path) -> None:
    (devices / "nvidia0").touch()
    on_cpus = config.model_copy(update={"cluster": ClusterConfig(workers=2, gpus_per_worker=0)})
    assert plan(on_cpus).notes == [
        "1 GPU stays idle on this machine, because no stage uses one; set cluster.gpus_per_worker=auto to train on "
        "GPUs."
    ]


@pytest.mark.usefixtures("with_data")
def test_gpus_that_this_machine_lacks_are_noted(
    config: PipelineConfig, devices: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_gpus = config.model_copy(update={"cluster": ClusterConfig(workers=1, gpus_per_worker=1)})
    assert plan(on_gpus).notes == [
        f"stages.{name}: needs a GPU per worker, but this machine has none; set gpus_per_worker to 0, or add nodes "
        "with GPUs."
        for name in ("pretrain", "larger", "finer", "evaluate")
    ]
    (devices / "nvidia0").touch()
    assert plan(on_gpus).notes == []
    (devices / "nvidia0").unlink()
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert plan(on_gpus).notes == []


@pytest.mark.usefixtures("with_data")
def test_auto_plans_for_what_this_machine_has(
    config: PipelineConfig, devices: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(8):
        (devices / f"nvidia{number}").touch()
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(96)))
    automatic = config.model_copy(update={"cluster": ClusterConfig()})
    assert ranks(plan(automatic)) == 8
    assert ranks(plan(automatic, world_size=4)) == 4
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert plan(automatic).notes == [
        "cluster.workers: auto uses all of the cluster at 10.0.0.1:6379; this plan assumes 8 workers, as on this "
        "machine; set another number with --world-size."
    ]


@pytest.mark.usefixtures("with_data")
def test_other_units_of_duration(config: PipelineConfig) -> None:
    result = plan(config)
    larger, finer = stage(result, "larger").training, stage(result, "finer").training
    assert larger is not None
    assert finer is not None
    assert (larger.steps, larger.samples) == (5, 80)
    assert (finer.steps, finer.samples) == (7, 112)  # 100 samples, rounded up to whole steps


@pytest.mark.usefixtures("with_data")
def test_models_follow_the_fan_out(config: PipelineConfig) -> None:
    result = plan(config)
    larger, finer = stage(result, "larger").training, stage(result, "finer").training
    assert larger is not None
    assert finer is not None
    assert [(m.starts_from, m.spec["backbone"]["variant"], m.surgeries) for m in larger.models] == [
        ("pretrain/nano", "nano", ["positions 7x7 -> 14x14"]),
        ("pretrain/micro", "micro", ["positions 7x7 -> 14x14"]),
    ]
    assert [m.starts_from for m in finer.models] == ["larger (from pretrain/nano)", "larger (from pretrain/micro)"]
    assert finer.models[1].surgeries == ["patch kernel 4x4 -> 2x2"]
    spec = ModelSpec.from_dict(finer.models[1].spec)
    assert finer.models[1].parameters == count_parameters(spec)
    assert finer.models[1].head_parameters == {"mlp_head": head_parameters(spec, "mlp_head")}
    assert finer.models[1].gflops == {f"{s}x{s}": forward_flops(spec, (s, s)) / 1e9 for s in (28, 20, 36)}


@pytest.mark.usefixtures("with_data")
def test_memory_is_that_of_the_largest_images(config: PipelineConfig, raw: dict[str, Any]) -> None:
    raw["stages"]["finer"]["resolution"]["sizes"] = [28]
    fixed = stage(plan(parse_config(raw, "c")), "finer").training
    mixed = stage(plan(config), "finer").training
    assert fixed is not None
    assert mixed is not None
    ratio = mixed.models[0].memory[0].activations / fixed.models[0].memory[0].activations
    assert ratio == pytest.approx((18 * 18 + 1) / (14 * 14 + 1))


@pytest.mark.usefixtures("with_data")
def test_micro_batches_bound_the_activations(config: PipelineConfig, raw: dict[str, Any]) -> None:
    raw["stages"]["finer"]["micro_batch_size"] = 2
    small = stage(plan(parse_config(raw, "c")), "finer").training
    whole = stage(plan(config), "finer").training
    assert small is not None
    assert whole is not None
    assert (small.micro_batch_size, whole.micro_batch_size) == (2, 16)
    assert small.models[0].memory[0].activations * 8 == whole.models[0].memory[0].activations


@pytest.mark.usefixtures("with_data")
def test_world_size_stands_in_for_the_workers(config: PipelineConfig) -> None:
    training = stage(plan(config, world_size=4), "pretrain/nano").training
    assert training is not None
    assert (training.world_size, training.balance.lanes, training.balance.step_samples) == (4, (2, 2), (4, 4))
    with pytest.raises(ConfigError, match=r"^stages\.pretrain\.data\.lanes: 8 is too few for 9 workers"):
        plan(config, world_size=9)


@pytest.mark.usefixtures("with_data")
def test_an_uneven_share_is_noted(config: PipelineConfig) -> None:
    assert any("stages.pretrain.data.lanes: 8 lanes share a batch of 16" in n for n in plan(config, world_size=3).notes)


@pytest.mark.usefixtures("with_data")
def test_a_warm_up_longer_than_the_stage_is_noted(raw: dict[str, Any]) -> None:
    raw["stages"]["larger"]["schedule"] = {"warmup": "1 epochs"}
    [note] = plan(parse_config(raw, "c")).notes
    assert note.startswith("stages.larger.schedule.warmup: its 6 steps do not end before the 5 steps of the stage,")


@pytest.mark.usefixtures("with_data")
def test_fewer_samples_than_lanes_are_refused(raw: dict[str, Any]) -> None:
    raw["stages"]["finer"]["data"]["lanes"] = 128
    with pytest.raises(ConfigError, match=r"^stages\.finer\.data\.lanes: 128 lanes need at least .* has 100;"):
        plan(parse_config(raw, "c"))


@pytest.mark.usefixtures("without_data")
def test_data_that_will_be_made_leaves_question_marks(config: PipelineConfig) -> None:
    result = plan(config)
    assert [data.state for data in result.datasets] == ["will be made", "will be made"]
    pretrain, larger = stage(result, "pretrain/nano").training, stage(result, "larger").training
    assert pretrain is not None
    assert larger is not None
    assert (pretrain.steps, pretrain.samples, larger.steps, larger.samples) == (None, None, 5, 80)
    assert "?" in text(result)
    assert result.notes == ["The classes of train are not known yet; heads are counted with one class."]


@pytest.mark.usefixtures("without_data")
def test_missing_data_is_noted(raw: dict[str, Any]) -> None:
    del raw["datasets"]["test"]["make"]
    result = plan(parse_config(raw, "c"))
    assert result.datasets[1].state == "missing"
    assert result.notes[0].startswith(f"datasets.test: '{Path.cwd()}/data/test-*.tar'")


@pytest.mark.usefixtures("without_data")
def test_a_data_set_nobody_can_make_is_refused(raw: dict[str, Any]) -> None:
    raw["datasets"]["train"]["make"] = "fashon-mnist"
    with pytest.raises(ConfigError, match=r"^datasets\.train\.make: .*did you mean 'fashion-mnist'"):
        plan(parse_config(raw, "c"))


@pytest.mark.usefixtures("without_data")
def test_states_of_the_run_folder_say_what_is_skipped(config: PipelineConfig) -> None:
    folder = RunFolder(Path("runs/quick"))
    for branch_id, state in (("pretrain/nano", "finished"), ("pretrain/micro", "finished"), ("larger", "interrupted")):
        folder.stage(branch_id).write_status(Status(state, "pretrain", "digest", {"version": VERSION}))
    statuses = read_statuses(config)
    assert {branch_id: status.state for branch_id, status in statuses.items()} == {
        "pretrain/nano": "finished",
        "pretrain/micro": "finished",
        "larger": "interrupted",
    }
    result = plan(config, statuses=statuses)
    assert [s.id for s in result.stages if s.skipped] == ["pretrain/nano", "pretrain/micro"]
    shown = text(result)
    assert "finished, skipped" in shown
    assert "resumes" in shown


@pytest.mark.usefixtures("with_data")
def test_json_holds_it_all(config: PipelineConfig) -> None:
    result = plan(config)
    read = json.loads(json.dumps(result.to_dict()))
    finer = next(s for s in read["stages"] if s["id"] == "finer")
    assert finer["depends_on"] == ["larger"]
    assert finer["skipped"] is False
    memory = finer["training"]["models"][0]["memory"]
    assert [m["zero_stage"] for m in memory] == [0, 1, 2, 3]
    parts = ("weights", "gradients", "optimizer", "ema", "activations")
    assert all(m["total"] == sum(m[part] for part in parts) for m in memory)


@pytest.mark.usefixtures("with_data")
def test_tables_show_each_stage_and_surgery(config: PipelineConfig) -> None:
    shown = text(plan(config))
    for expected in ("pretrain/micro", "pretrain/nano -> larger: positions 7x7 -> 14x14", "ZeRO 3", "28 20 36"):
        assert expected in shown
