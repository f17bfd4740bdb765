"""Every user error gives one sentence and an exit status, never a traceback."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.cluster.resources import this_machine

TRACKING_LIMIT_S = 30  # of which about 5 are imports


@pytest.fixture
def raw(kit: Any, shards: Path) -> dict[str, Any]:
    return kit.config(shards, "bad", {"pretrain": kit.pretrain()})


@pytest.fixture
def own_shards(tmp_path: Path, shards: Path, raw: dict[str, Any]) -> Path:
    """A copy of the shards in `raw`, which a test may damage."""
    folder = shutil.copytree(shards, tmp_path / "shards")
    for name in raw["datasets"]:
        raw["datasets"][name]["shards"] = f"{folder}/{name}-*.tar"
    return folder


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_missing_config(workplace: Any) -> None:
    done = workplace.minivit("run", "nowhere.yaml")
    assert done.code == 2
    assert "nowhere.yaml" in done.error


def test_yaml_syntax_error(workplace: Any) -> None:
    (workplace.folder / "torn.yaml").write_text("name: x\nstages: {pretrain: [\n")
    done = workplace.minivit("run", "torn.yaml")
    assert done.code == 2
    assert "torn.yaml:3:1: not valid YAML" in done.error


def test_misspelt_key(workplace: Any, raw: dict[str, Any]) -> None:
    raw["stages"]["pretrain"]["optimzer"] = raw["stages"]["pretrain"].pop("optimizer")
    done = workplace.minivit("run", workplace.write(raw))
    assert done.code == 2
    assert "stages.pretrain.optimzer" in done.error
    assert "'optimizer'" in done.error


def test_misspelt_override(workplace: Any, raw: dict[str, Any]) -> None:
    done = workplace.minivit("run", workplace.write(raw), "cluster.wrokers=3")
    assert done.code == 2
    assert "cluster.wrokers" in done.error
    assert "workers" in done.error


def test_pattern_that_matches_nothing(workplace: Any, raw: dict[str, Any], shards: Path) -> None:
    raw["datasets"]["train"]["shards"] = f"{shards}/trian-*.tar"
    done = workplace.minivit("run", workplace.write(raw))
    assert done.code == 3
    assert "trian-*.tar" in done.error


def test_shards_without_an_index(workplace: Any, raw: dict[str, Any], own_shards: Path) -> None:
    (own_shards / "index.json").unlink()
    done = workplace.minivit("run", workplace.write(raw))
    assert done.code == 3
    faults = done.stderr.splitlines()  # of the three data sets
    assert len(faults) == 3
    assert all(fault.startswith("error: ") and "minivit shards index" in fault for fault in faults)


def test_index_that_does_not_match_its_tar(workplace: Any, raw: dict[str, Any], own_shards: Path) -> None:
    with (own_shards / "train-000001.tar").open("ab") as file:
        file.write(bytes(512))
    done = workplace.minivit("run", workplace.write(raw))
    assert done.code == 3
    assert "train-000001.tar" in done.error
    assert "index" in done.error


def test_label_outside_the_classes(workplace: Any, raw: dict[str, Any]) -> None:
    raw["datasets"]["train"]["classes"] = ["a", "b", "c"]
    done = workplace.minivit("run", workplace.write(raw))
    assert done.code == 3
    assert "datasets.train" in done.error
    assert "labels up to 3, but there are 3 classes" in done.error


def test_run_folder_of_another_config(workplace: Any, raw: dict[str, Any]) -> None:
    status = {"state": "finished", "type": "finetune", "digest": "d", "inputs": {}}
    folder = workplace.stage("bad", "other")
    folder.mkdir(parents=True)
    (folder / "status.json").write_text(json.dumps(status))
    done = workplace.minivit("run", workplace.write(raw))
    assert done.code == 5
    assert "runs/bad belongs to another config: it has the finetune stage 'other'" in done.error


def test_torn_status(workplace: Any, raw: dict[str, Any]) -> None:
    folder = workplace.stage("bad", "pretrain")
    folder.mkdir(parents=True)
    (folder / "status.json").write_text('{"state": ')
    done = workplace.minivit("run", workplace.write(raw))
    assert done.code == 5
    assert "status.json cannot be read" in done.error


def test_torn_record(workplace: Any, raw: dict[str, Any]) -> None:
    (workplace.folder / "runs" / "bad").mkdir(parents=True)
    (workplace.folder / "runs" / "bad" / "run.json").write_text('{"mlflow')
    done = workplace.minivit("run", workplace.write(raw))
    assert done.code == 5
    assert "run.json cannot be read" in done.error


def test_mlflow_that_does_not_answer(workplace: Any, raw: dict[str, Any]) -> None:
    raw["tracking"] = {"uri": f"http://127.0.0.1:{closed_port()}"}
    done = workplace.minivit("run", workplace.write(raw))
    assert done.code == 7
    assert "tracking.uri: the MLflow store at http://127.0.0.1:" in done.error
    assert done.seconds < TRACKING_LIMIT_S


def test_mlflow_of_an_unknown_kind(workplace: Any, raw: dict[str, Any]) -> None:
    raw["tracking"] = {"uri": "gopher://store"}
    done = workplace.minivit("run", workplace.write(raw))
    assert done.code == 7
    assert "gopher://store" in done.error


def test_ray_that_does_not_answer(workplace: Any, raw: dict[str, Any]) -> None:
    raw["cluster"]["address"] = f"127.0.0.1:{closed_port()}"
    raw["stages"]["pretrain"]["data"]["val"] = "train"
    done = workplace.minivit("run", workplace.write(raw))
    assert done.code == 6
    assert "warning: datasets.train: stages.pretrain trains on it and is evaluated on it" in done.stderr
    assert "cluster.address: no Ray cluster answers at 127.0.0.1:" in done.error


@pytest.mark.integration
def test_too_few_cpus(tmp_path: Path, joined: Any, raw: dict[str, Any]) -> None:
    done = joined.minivit("run", joined.write(raw), "cluster.cpus_per_worker=2")
    assert done.code == 6
    assert "stages.pretrain: 2 workers with 2 CPUs each do not fit on the cluster at 127.0.0.1:" in done.error
    assert "which has room for 1 (3 CPUs and 0 GPUs)" in done.error
    parent = json.loads((joined.folder / "runs/bad/run.json").read_text())["mlflow_run_id"]
    assert joined.client().get_run(parent).info.status == "FAILED"


@pytest.mark.integration
def test_a_gpu_where_there_is_none(joined: Any, raw: dict[str, Any]) -> None:
    done = joined.minivit("run", joined.write(raw), "cluster.gpus_per_worker=1")
    assert done.code == 6
    assert "stages.pretrain: needs a GPU per worker, but 127.0.0.1:" in done.error
    assert " has none; set gpus_per_worker to 0, or add nodes with GPUs" in done.error


@pytest.mark.skipif(this_machine().gpus > 0, reason="needs a machine without GPUs")
def test_a_plan_says_that_this_machine_has_no_gpu(workplace: Any, raw: dict[str, Any]) -> None:
    done = workplace.minivit("plan", workplace.write(raw), "cluster.gpus_per_worker=1")
    assert done.code == 0, done.stderr
    said = " ".join(done.stdout.split())  # lines are as wide as the terminal
    assert "stages.pretrain: needs a GPU per worker, but this machine has none; set gpus_per_worker to 0" in said


def test_fewer_samples_than_workers(workplace: Any, raw: dict[str, Any]) -> None:
    raw["stages"]["pretrain"]["global_batch_size"] = 1
    done = workplace.minivit("run", workplace.write(raw))
    assert done.code == 2
    assert "stages.pretrain.global_batch_size: 1 is too few for cluster.workers = 2" in done.error


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a file system of a given size at `runs/`."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a small file system")
    folder = tmp_path / "runs"
    mounted = False

    def mount(size: str) -> Path:
        nonlocal mounted
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
        mounted = True
        return folder

    yield mount
    if mounted:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.root
def test_disk_that_is_full_at_the_start(workplace: Any, raw: dict[str, Any], small_disk: Callable[[str], Path]) -> None:
    small_disk("8k")
    done = workplace.minivit("run", workplace.write(raw))
    assert done.code == 7
    assert "runs/mlflow.db is on a disk that is full; make room and run the same command again" in done.error


@pytest.mark.integration
@pytest.mark.timeout(600)
@pytest.mark.root
def test_disk_that_fills_up_at_a_checkpoint(
    workplace: Any, raw: dict[str, Any], cluster: dict[str, str], small_disk: Callable[[str], Path]
) -> None:
    """Room for MLflow's store and one checkpoint of about 0.9 MB, but not for two."""
    small_disk("5m")
    workplace.environment.update(cluster)
    done = workplace.minivit("run", workplace.write(raw), timeout_s=560)
    assert done.code == 5
    assert "cannot be written" in done.error
    assert "full" in done.error
    events = (workplace.stage("bad", "pretrain") / "events.jsonl").read_text()
    assert '"restart"' not in events


@pytest.fixture
def revoke() -> Iterator[Callable[[Path], None]]:
    """Makes a folder read-only, even for root, until the test is over."""
    revoked: list[Path] = []

    def change(folder: Path, flag: str) -> bool:
        return subprocess.run(["chattr", flag, folder], capture_output=True, check=False).returncode == 0

    def take(folder: Path) -> None:
        if os.geteuid() != 0 or not change(folder, "+i"):
            pytest.skip("needs root and a file system that knows immutable folders")
        revoked.append(folder)

    yield take
    for folder in revoked:
        change(folder, "-i")


@pytest.mark.integration
@pytest.mark.timeout(900)
@pytest.mark.root
def test_write_permission_that_is_revoked_in_mid_training(
    workplace: Any, kit: Any, raw: dict[str, Any], cluster: dict[str, str], revoke: Callable[[Path], None]
) -> None:
    """The run resumes from its last checkpoint when it may write again."""
    workplace.environment.update(cluster)
    raw["stages"]["pretrain"] |= {"duration": "300 steps", "checkpoint": {"every": "10 steps"}, "log_every": 1}
    raw["stages"]["pretrain"]["eval"] = {"every": "300 steps"}
    path = workplace.write(raw)
    process = workplace.start("run", path)
    kit.wait_until(lambda: len(workplace.rows("bad", "pretrain")) > 25, process)
    checkpoints = workplace.stage("bad", "pretrain") / "checkpoints"
    revoke(checkpoints)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 5, stderr
    assert "Traceback" not in stderr
    last = stderr.splitlines()[-1]
    assert "cannot be written ([Errno 1] Operation not permitted" in last
    assert "correct the permissions" in last
    subprocess.run(["chattr", "-i", checkpoints], check=True)
    done = workplace.minivit("run", path)
    assert done.code == 0, done.stderr
    assert "pretrain: resumes at step " in done.stderr
