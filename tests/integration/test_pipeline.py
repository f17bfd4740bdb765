"""A pipeline with every type of stage through `minivit run`: results, tracking, skipping, and running again."""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.tracking.forward import ROW_FIELDS

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

TRAINED = ("pretrain/nano", "pretrain/micro", "larger", "finer")
ALL = (*TRAINED, "evaluate", "export", "report")


@pytest.fixture(scope="module")
def torn(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shards, with one undecodable image in each split."""
    folder = shutil.copytree(shards, tmp_path_factory.mktemp("torn") / "shards")
    for split in ("train", "val", "test"):
        path = folder / f"{split}-000000.tar"
        with tarfile.open(path) as tar:
            image = [member for member in tar if member.name.endswith(".png")][-1]
        with path.open("r+b") as file:
            file.seek(image.offset_data)
            file.write(bytes(image.size))
    return folder


@pytest.fixture(scope="module")
def raw(kit: Any, torn: Path) -> dict[str, Any]:
    first = kit.pretrain(duration="80 steps", checkpoint={"every": "40 steps"}, eval={"every": "40 steps"})
    first["model"]["variant"] = ["nano", "micro"]
    larger = kit.pretrain(type="finetune", init_from="pretrain")
    larger["model"] = {"image_size": 2 * kit.side, "patch_size": 4, "channels": 1}
    finer = kit.pretrain(type="finetune", init_from="larger", resolution={"mode": "random", "sizes": [12, 16, 20]})
    finer["model"] = {"image_size": kit.side, "patch_size": 2, "channels": 1}
    stages = {
        "pretrain": first,
        "larger": larger,
        "finer": finer,
        "evaluate": {"type": "evaluate", "models": ["pretrain", "larger", "finer"], "data": "test", "batch_size": 8},
        "export": {"type": "export", "model": "finer", "formats": ["safetensors"]},
        "report": {"type": "report"},
    }
    return kit.config(torn, "all", stages)


@pytest.fixture(scope="module")
def first_run(joined: Any, raw: dict[str, Any]) -> Any:
    done = joined.minivit("run", joined.write(raw), timeout_s=560)
    assert done.code == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def children(joined: Any, first_run: Any) -> dict[str, Any]:
    """MLflow's runs below the pipeline's own, by stage."""
    parent = json.loads((joined.folder / "runs" / "all" / "run.json").read_text())["mlflow_run_id"]
    client = joined.client()
    experiment = client.get_experiment_by_name("minivit").experiment_id
    found = client.search_runs([experiment], f"tags.mlflow.parentRunId = '{parent}'")
    assert client.get_run(parent).info.status == "FINISHED"
    return {run.info.run_name.removeprefix("all/"): run for run in found}


def test_every_stage_finished(joined: Any, first_run: Any) -> None:
    for stage_id in ALL:
        status = joined.status("all", stage_id)
        assert (status["state"], status["attempts"], status["error"]) == ("finished", 1, None)
    assert joined.status("all", "larger")["init_from"] in TRAINED[:2]
    assert joined.status("all", "finer")["init_from"] == "larger"


def test_training_learns_and_hands_on_what_it_learnt(joined: Any, first_run: Any) -> None:
    best = joined.status("all", joined.status("all", "larger")["init_from"])["result"]["measures"]["accuracy"]
    assert best > 0.6  # of four classes
    assert joined.status("all", "larger")["result"]["start"]["accuracy"] > 0.5
    assert joined.status("all", "finer")["result"]["start"]["accuracy"] > 0.5


def test_sizes_and_shapes_are_those_of_the_config(joined: Any, first_run: Any) -> None:
    spec = json.loads((joined.stage("all", "finer") / "model" / "model.json").read_text())["spec"]["backbone"]
    assert (spec["grid"], spec["patch"]) == ([8, 8], [2, 2])
    sizes = {row["train/image_size"] for row in joined.rows("all", "finer") if "train/image_size" in row}
    assert sizes <= {12.0, 16.0, 20.0}
    surgery = json.loads((joined.stage("all", "larger") / "surgery.json").read_text())
    assert surgery


def test_evaluation_counts_each_image_once(joined: Any, first_run: Any) -> None:
    evaluation = json.loads((joined.stage("all", "evaluate") / "evaluation.json").read_text())
    assert set(evaluation["models"]) == set(TRAINED)
    with np.load(joined.stage("all", "evaluate") / "confusion.npz") as arrays:
        confusions = [arrays[f"arr_{number}"] for number in range(len(TRAINED))]
    for result, confusion in zip(evaluation["models"].values(), confusions, strict=True):
        assert (result["samples"], result["bad_samples"], evaluation["samples"]) == (36, 1, 37)
        true, predicted, counts = confusion.T
        assert np.bincount(true, weights=counts).tolist() == [10, 9, 9, 8]  # true classes of the test shards
        assert result["accuracy"] == pytest.approx(counts[true == predicted].sum() / 36)


def test_the_command_evaluates_as_the_stage_does(joined: Any, first_run: Any, torn: Path) -> None:
    """Evaluates a run's stage and an export, with another number of ranks than the stage."""
    judged = ["runs/all/finer", "runs/all/stages/export/export/safetensors"]
    done = joined.minivit("evaluate", *judged, "--data", f"{torn}/test-*.tar", "--workers", "1", "--json")
    assert done.code == 0, done.stderr
    expected = json.loads((joined.stage("all", "evaluate") / "evaluation.json").read_text())["models"]["finer"]
    intervals = expected.pop("intervals")
    assert intervals.keys() == {"accuracy", "top5"}
    found = json.loads(done.stdout)["models"]
    assert list(found) == judged
    for figures in found.values():
        assert figures.pop("intervals") == intervals
        assert figures == pytest.approx(expected, rel=1e-5)


def test_lost_samples_are_reported_where_people_look(joined: Any, first_run: Any, children: dict[str, Any]) -> None:
    said = first_run.stderr.splitlines()
    report = (joined.folder / "runs" / "all" / "report.html").read_text()
    places = [(stage_id, split) for stage_id in TRAINED for split in ("train", "val")] + [("evaluate", "test")]
    for stage_id, split in places:
        samples = {"train": 96, "val": 21, "test": 37}[split]
        [line] = [line for line in said if line.startswith(f"{stage_id}: {split}: ")]
        assert f"1 of {samples} samples are bad and were left out: no readable image header" in line
        told = joined.status("all", stage_id)["result"]["bad_samples"][split]
        assert (told["bad"], told["samples"]) == (1, samples)
        assert f"1 of {samples}</td>" in report
        client, run = joined.client(), children[stage_id]
        kept = client.list_artifacts(run.info.run_id, "quarantine")
        assert {item.path.partition(".")[0] for item in kept} >= {
            "quarantine/quarantine-val" if split == "val" else "quarantine/quarantine"
        }
        name = {"train": "data/bad_samples", "val": "val/bad_samples", "test": "test/bad_samples"}[split]
        assert run.data.metrics[name] == 1
    assert children["larger"].data.metrics["val/samples"] == 20


def test_all_metrics_are_in_mlflow(joined: Any, children: dict[str, Any]) -> None:
    assert set(children) == set(ALL)
    client = joined.client()
    for stage_id in TRAINED:
        run = children[stage_id]
        assert run.info.status == "FINISHED"
        rows = joined.rows("all", stage_id)
        for name in {name for row in rows for name in row} - set(ROW_FIELDS):
            history = [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name)]
            assert sorted(history) == [(row["step"], pytest.approx(row[name])) for row in rows if name in row]
        assert {"train/loss", "train/accuracy", "train/lr", "train/image_size", "val/accuracy"} <= set(run.data.metrics)
        assert {"speed/images_per_s", "speed/step_time_s", "speed/data_wait_share"} <= set(run.data.metrics)
        assert run.data.params["optimizer.lr"] == "0.003"
        assert len(run.inputs.dataset_inputs) == 2
    assert children["evaluate"].data.metrics["test/accuracy/finer"] == pytest.approx(
        joined.status("all", "evaluate")["result"]["measures"]["finer"]["accuracy"]
    )


def test_variants_compare_side_by_side(children: dict[str, Any]) -> None:
    """They have the same columns, and differ in those that tell them apart."""
    nano, micro = (children[f"pretrain/{variant}"].data for variant in ("nano", "micro"))
    assert nano.params.keys() == micro.params.keys()
    assert nano.metrics.keys() == micro.metrics.keys()
    assert {"learning_rate", "image_size", "global_batch_size", "duration"} <= nano.params.keys()
    assert {"best/accuracy", "best/loss", "val/accuracy", "speed/images_per_s"} <= nano.metrics.keys()
    assert {name for name in nano.params if nano.params[name] != micro.params[name]} == {"variant", "parameters"}
    assert (nano.params["variant"], micro.params["variant"]) == ("nano", "micro")


def test_artifacts_are_in_mlflow(joined: Any, children: dict[str, Any]) -> None:
    client = joined.client()

    def artifacts(stage_id: str, folder: str | None = None) -> set[str]:
        return {item.path for item in client.list_artifacts(children[stage_id].info.run_id, folder)}

    assert {"surgery.json", "surgery.txt", "metrics.jsonl"} <= artifacts("larger")
    assert "model" not in artifacts("larger")  # the logged model holds the weights
    [logged] = children["finer"].outputs.model_outputs
    stored = client.list_logged_model_artifacts(logged.model_id, "data/model")
    assert "data/model/model.safetensors" in {item.path for item in stored}
    assert {"evaluation.json", "per_class.csv", "confusion.npz"} <= artifacts("evaluate")
    assert "export/safetensors" in artifacts("export", "export")
    assert "report.html" in artifacts("report")
    parent = children["report"].data.tags["mlflow.parentRunId"]
    assert "pipeline.yaml" in {item.path for item in client.list_artifacts(parent)}


def test_the_model_is_usable_downstream(joined: Any, first_run: Any, kit: Any, tmp_path: Path) -> None:
    image = tmp_path / "image.png"
    image.write_bytes(kit.noise_png(2, 5000))
    for model in ("runs/all", "runs/all/stages/finer", "runs/all/stages/export/export/safetensors"):
        done = joined.minivit("predict", model, str(image), "--top", "2", "--json")
        assert done.code == 0, done.stderr
        [row] = json.loads(done.stdout)
        assert set(row["classes"]) < set(kit.classes)
        assert len(row["classes"]) == 2


def test_the_last_checkpoint_exports_as_the_finished_model(joined: Any, first_run: Any, tmp_path: Path) -> None:
    done = joined.minivit("export", "runs/all/finer", "--checkpoint", "last", "--out", str(tmp_path / "last"))
    assert done.code == 0, done.stderr
    model, exported = joined.stage("all", "finer") / "model", tmp_path / "last"
    assert (exported / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()
    described, expected = (json.loads((folder / "model.json").read_text()) for folder in (exported, model))
    assert described["provenance"].pop("checkpoint").endswith("finer/checkpoints/step-00000012")
    assert described == expected


def test_checkpoints_are_listed_and_verified(joined: Any, first_run: Any) -> None:
    listed = joined.minivit("checkpoints", "list", "runs/all").stdout
    assert listed.count("2 workers  ZeRO-2") == 2 * len(TRAINED)  # keep_last of each
    assert joined.minivit("checkpoints", "verify", "runs/all").code == 0
    folder = joined.stage("all", "finer") / "checkpoints" / "step-00000012"
    victim = next(folder.glob("*.safetensors"))
    whole = victim.read_bytes()
    victim.write_bytes(whole[:-1])
    done = joined.minivit("checkpoints", "verify", "runs/all")
    victim.write_bytes(whole)
    assert done.code == 5
    assert "found 1 invalid checkpoint(s)" in done.error
    assert f"has {len(whole) - 1} bytes, but the manifest says {len(whole)}" in done.stdout


def test_a_second_run_skips_everything(joined: Any, first_run: Any) -> None:
    files = [joined.folder / "runs" / "mlflow.db", *(joined.stage("all", stage_id) / "status.json" for stage_id in ALL)]
    before = [file.read_bytes() for file in files]
    done = joined.minivit("run", "pipeline.yaml")
    assert done.code == 0, done.stderr
    assert done.stderr.count("skipped: already finished with the same inputs") == len(ALL)
    assert [file.read_bytes() for file in files] == before
    assert done.seconds < 30  # no worker was started


def test_another_process_is_refused_meanwhile(joined: Any, first_run: Any) -> None:
    holder = subprocess.Popen(["flock", joined.folder / "runs" / "all" / ".lock", "cat"], stdin=subprocess.PIPE)
    try:
        (joined.folder / "runs" / "all" / ".lock").write_text("4242")
        done = joined.minivit("run", "pipeline.yaml")
        assert "runs/all is in use by process 4242" in done.error
        assert done.code == 5
    finally:
        holder.communicate()


def test_a_changed_setting_runs_again_and_says_why(joined: Any, first_run: Any) -> None:
    former = joined.status("all", "finer")
    done = joined.minivit("run", "pipeline.yaml", "stages.finer.optimizer.lr=0.001")
    assert done.code == 0, done.stderr
    lines = done.stderr.splitlines()
    [why] = [line for line in lines if line.startswith("finer: runs again")]
    assert "settings.optimizer.lr (0.003 to default) changed" in why
    assert "runs/all/stages/finer.superseded-1" in why
    kept = json.loads((joined.folder / "runs/all/stages/finer.superseded-1/status.json").read_text())
    assert kept == former
    assert joined.status("all", "finer")["mlflow_run_id"] != former["mlflow_run_id"]
    assert sum("skipped" in line for line in lines) == 3  # both branches and `larger`
    assert any(line.startswith("evaluate: runs again, because models.finer") for line in lines)
