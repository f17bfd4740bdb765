"""A run with a team's MLflow server: PostgreSQL, artifacts proxied to S3, passwords, and crashes during uploads."""

from __future__ import annotations

import http.client
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository

import pipeline
from pipeline.config.schema import TrackingConfig
from pipeline.files import hash_file
from pipeline.tracking.models import logged_models
from pipeline.tracking.runs import Tracker
from pipeline.tracking.store import choose_store

pytestmark = [pytest.mark.integration, pytest.mark.root, pytest.mark.timeout(1200)]

START_S = 600
DATABASE_SECRET, PASSWORD = "pg-Secret-41d7", "team-Secret-93ab"
AUTH = """[mlflow]
default_permission = READ
database_uri = {database}
admin_username = admin
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
"""
UPLOAD = "PUT /api/2.0/mlflow-artifacts/artifacts/"
MULTIPART_BEGUN = "POST /api/2.0/mlflow-artifacts/mpu/create/"
PART = 5 << 20  # bytes; S3 takes no smaller ones, except as the last
MULTIPART = {
    "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD": "true",
    "MLFLOW_MULTIPART_UPLOAD_MINIMUM_FILE_SIZE": "200000",
    "MLFLOW_MULTIPART_UPLOAD_CHUNK_SIZE": str(PART),
}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@dataclass
class Server:
    """An `mlflow server` that tests kill and start again, on the same port and stores."""

    folder: Path
    database: str
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        return (self.folder / "server.log").read_text()

    def uri(self, password: str = PASSWORD) -> str:
        return f"http://admin:{password}@127.0.0.1:{self.port}"

    def start(self) -> None:
        (self.folder / "auth.ini").write_text(AUTH.format(database=self.database))
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", self.database, "--app-name", "basic-auth"]
        command += ["--artifacts-destination", "s3://mlflow/kept", "--allowed-hosts", f"127.0.0.1:{self.port}"]
        environment = {
            "AWS_ACCESS_KEY_ID": os.environ["FSSPEC_S3_KEY"],
            "AWS_SECRET_ACCESS_KEY": os.environ["FSSPEC_S3_SECRET"],
            "MLFLOW_S3_ENDPOINT_URL": os.environ["FSSPEC_S3_ENDPOINT_URL"],
            "MLFLOW_AUTH_CONFIG_PATH": str(self.folder / "auth.ini"),
            "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": "flask",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # its own job runners take half of two cores
        }
        with (self.folder / "server.log").open("a") as log:
            self.process = subprocess.Popen(
                command, env=os.environ | environment, stdout=log, stderr=log, start_new_session=True
            )
        due = time.monotonic() + START_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=5).close()
                break
            except OSError:
                assert self.process.poll() is None, self.log
                assert time.monotonic() < due, self.log
                time.sleep(0.2)

    def kill(self) -> None:
        """Kill it and all its workers."""
        if self.process and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def status_for(self, host: str) -> int:
        """The status of a request that names a host."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET", "/api/2.0/mlflow/experiments/search?max_results=1", headers={"Host": host})
        return connection.getresponse().status


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """A PostgreSQL with a password, on loopback; it refuses to run as root."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    if not programs:
        pytest.skip("needs PostgreSQL: apt-get install postgresql")
    folder, port = Path(tempfile.mkdtemp(prefix="minivit-postgres-")), free_port()
    (folder / "password").write_text(DATABASE_SECRET)
    for path in (folder, folder / "password"):
        shutil.chown(path, "postgres")
    postgres: dict[str, Any] = {"user": "postgres", "group": "postgres", "extra_groups": [], "cwd": "/"}
    options = ["-D", str(folder / "data"), "-U", "mlflow", f"--pwfile={folder}/password", "--auth=scram-sha-256"]
    command = [str(programs[-1].with_name("initdb")), *options, "--no-sync"]
    subprocess.run(command, check=True, capture_output=True, **postgres)
    command = [str(programs[-1]), "-D", str(folder / "data"), "-k", str(folder), "-p", str(port)]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([*command, "-h", "127.0.0.1", "-c", "fsync=off"], stderr=log, **postgres)
    try:
        due = time.monotonic() + 60
        while "ready to accept connections" not in (folder / "log").read_text():
            assert time.monotonic() < due, (folder / "log").read_text()
            time.sleep(0.1)
        yield f"postgresql://mlflow:{DATABASE_SECRET}@127.0.0.1:{port}/postgres"
    finally:
        process.send_signal(signal.SIGINT)  # a fast shutdown
        process.wait(timeout=60)
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def server(database: str, s3: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    pytest.importorskip("psycopg")
    pytest.importorskip("flask_wtf")
    (s3 / "mlflow").mkdir()
    server = Server(tmp_path_factory.mktemp("server"), database)
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def team(kit: Any, server: Server, cluster: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A folder whose runs are tracked on the server; the password is part of the URI."""
    secret = {"MLFLOW_TRACKING_URI": server.uri(), "HF_TOKEN": "hf-Secret-5512", "MLFLOW_HTTP_REQUEST_TIMEOUT": "60"}
    return kit.Workplace(tmp_path_factory.mktemp("team"), cluster | MULTIPART | secret)


@pytest.fixture(scope="module")
def config(kit: Any, shards: Path, s3: Path, team: Any) -> str:
    """One training stage and an export that registers its model; the shards are in S3."""
    shutil.copytree(shards, s3 / "shards")
    stages = {
        "pretrain": kit.pretrain(),
        "export": {"type": "export", "model": "pretrain", "register_as": {"name": "shapes", "alias": "champion"}},
    }
    raw = kit.config(Path("shards"), "team", stages)
    for dataset in raw["datasets"].values():
        dataset["shards"] = f"s3://{dataset['shards']}"
    raw["tracking"] = {"wait_s": 1.0, "system_metrics_every_s": 0.5}
    return str(team.write(raw))


@pytest.fixture(scope="module")
def cut_off(kit: Any, server: Server, team: Any, config: str) -> tuple[int, str]:
    """A run whose server is killed after the first artifact of a stage: the exit status and the output."""
    process = team.start("run", config)
    kit.wait_until(lambda: server.log.count(UPLOAD) > 1, process, 900)
    server.kill()
    _, said = process.communicate(timeout=600)
    return process.returncode, said


@pytest.fixture(scope="module")
def delivered(kit: Any, server: Server, team: Any, config: str, cut_off: tuple[int, str]) -> str:
    """The same command again, whose server restarts while it uploads the model: its output."""
    server.start()
    begun = server.log.count(MULTIPART_BEGUN)
    process = team.start("run", config, f"tracking.wait_s={START_S}")
    kit.wait_until(lambda: server.log.count(MULTIPART_BEGUN) > begun, process, 600)
    server.kill()
    server.start()
    _, said = process.communicate(timeout=600)
    assert process.returncode == 0, said
    return str(said)


@pytest.fixture(scope="module")
def tracker(server: Server, delivered: str, tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    return Tracker(choose_store(TrackingConfig(uri=server.uri()), tmp_path_factory.mktemp("unused"), {}, {}))


def test_a_dead_server_harms_no_training(team: Any, cut_off: tuple[int, str]) -> None:
    code, said = cut_off
    assert code == 7, said
    *_, error = said.splitlines()
    assert error.startswith("error: MLFLOW_TRACKING_URI: the MLflow store at http://admin:***@127.0.0.1:")
    assert "every stage has finished, but MLflow's record of pretrain, export is incomplete" in error
    assert "run the same command again to send it, without retraining" in error
    assert "Traceback" not in said
    assert team.rows("team", "pretrain")[-1]["step"] == 12


def test_a_run_waits_for_a_server_that_restarts_during_an_upload(delivered: str) -> None:
    assert "pretrain: MLFLOW_TRACKING_URI: the MLflow store at http://admin:***@127.0.0.1:" in delivered
    assert "the stage's remaining records are kept and will be sent later" in delivered
    assert "team: MLflow is now up to date with pretrain" in delivered


def test_all_of_it_is_delivered_once(team: Any, s3: Path, tracker: Tracker, delivered: str) -> None:
    assert delivered.count("skipped: already finished with the same inputs") == 2
    client = tracker.client
    for stage_id in ("pretrain", "export"):
        status = team.status("team", stage_id)
        assert (status["state"], status["attempts"], status["untracked"]) == ("finished", 1, None)
        assert client.get_run(status["mlflow_run_id"]).info.status == "FINISHED"
    run_id = team.status("team", "pretrain")["mlflow_run_id"]
    assert len(client.search_runs([tracker.experiment_id])) == 3
    for name in ("train/loss", "val/accuracy"):
        history = [(metric.step, metric.value) for metric in client.get_metric_history(run_id, name)]
        rows = [row for row in team.rows("team", "pretrain") if name in row]
        assert sorted(history) == [(row["step"], pytest.approx(row[name])) for row in rows]
    [model] = logged_models(tracker, run_id)
    folder, kept = team.stage("team", "pretrain"), s3 / "mlflow" / "kept"
    [rows] = kept.glob(f"*/{run_id}/artifacts/metrics.jsonl")
    assert rows.read_bytes() == (folder / "metrics.jsonl").read_bytes()
    [bundle] = kept.glob(f"*/models/{model.model_id}/artifacts/data/model")
    assert {path.name for path in bundle.iterdir()} == {path.name for path in (folder / "model").iterdir()}
    for path in bundle.iterdir():
        assert path.read_bytes() == (folder / "model" / path.name).read_bytes()
    of_the_stage = [path for path in kept.rglob("model.safetensors") if "export" not in path.parts]
    assert of_the_stage == [bundle / "model.safetensors"]
    champion = client.get_model_version_by_alias("shapes", "champion")
    assert champion.tags["minivit.model"] == model.model_id
    assert len(client.search_model_versions("name = 'shapes'")) == 1


def test_large_files_go_to_the_store_in_parts(
    server: Server, s3: Path, delivered: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run has sent its model as one part; a file of two parts arrives byte for byte, too."""
    complete, sent = HttpArtifactRepository.complete_multipart_upload, []

    def counted(repository: Any, file: str, upload_id: str, parts: list[Any], *folder: str | None) -> None:
        sent.append(len(parts))
        complete(repository, file, upload_id, parts, *folder)

    monkeypatch.setattr(HttpArtifactRepository, "complete_multipart_upload", counted)
    for name, value in MULTIPART.items():
        monkeypatch.setenv(name, value)
    large = tmp_path / "large.bin"
    large.write_bytes(random.Random(0).randbytes(PART + 12_345))
    tracker = Tracker(choose_store(TrackingConfig(uri=server.uri(), experiment="parts"), tmp_path, {}, {}))
    run_id = tracker.start("parts", run_id=None)
    tracker.artifact(run_id, large)
    assert sent == [2]
    [stored] = (s3 / "mlflow" / "kept").glob(f"*/{run_id}/artifacts/large.bin")
    assert stored.read_bytes() == large.read_bytes()


def test_runs_can_be_compared(team: Any, tracker: Tracker) -> None:
    """The names by which runs are compared, and the utilisation of the node."""
    run = tracker.client.get_run(team.status("team", "pretrain")["mlflow_run_id"])
    compared = {"variant": "nano", "global_batch_size": "16", "duration": "12 steps", "learning_rate": "0.003"}
    compared |= {"image_size": "16", "patch_size": "4", "world_size": "2"}
    assert run.data.params.items() >= compared.items()
    assert int(run.data.params["parameters"]) > 10_000
    rows = team.rows("team", "pretrain")
    assert run.data.metrics["best/accuracy"] == max(row["val/accuracy"] for row in rows if "val/accuracy" in row)
    used = {item.tags[0].value: item.dataset for item in run.inputs.dataset_inputs}
    assert {context: data.source for context, data in used.items()} == {
        "training": "s3://shards/train-*.tar",
        "validation": "s3://shards/val-*.tar",
    }
    assert {data.name for data in used.values()} == {"train", "val"}
    system = {name for name in run.data.metrics if name.startswith("system/")}
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_percentage"} <= system
    assert {"system/disk_usage_percentage", "system/network_receive_megabytes"} <= system


def test_every_run_says_where_it_comes_from(team: Any, tracker: Tracker) -> None:
    """The pipeline's own run and those of its stages: commit, host and config."""
    package = Path(pipeline.__file__).parent
    git = subprocess.run(["git", "-C", package, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    expected = {
        "mlflow.source.git.commit": git.stdout.strip(),
        "minivit.host": socket.gethostname(),
        "minivit.config_sha256": hash_file(team.folder / "runs" / "team" / "pipeline.yaml"),
    }
    runs = tracker.client.search_runs([tracker.experiment_id])
    assert {run.info.run_name for run in runs} == {"team", "team/pretrain", "team/export"}
    for run in runs:
        assert run.data.tags.items() >= expected.items()


def test_a_host_that_is_not_allowed_is_refused(server: Server) -> None:
    assert server.status_for("evil.example") == 403


def test_a_wrong_password_ends_a_run_before_it_begins(
    kit: Any, server: Server, team: Any, config: str, delivered: str, tmp_path: Path
) -> None:
    wrong = {"MLFLOW_TRACKING_URI": server.uri("wrong-Secret-00")}
    done = kit.Workplace(tmp_path, team.environment | wrong).minivit("run", str(team.folder / config))
    assert done.code == 7
    assert done.error.startswith("error: MLFLOW_TRACKING_URI: the MLflow store at http://admin:***@127.0.0.1:")
    assert " refuses the user or the password; correct MLFLOW_TRACKING_USERNAME and " in done.error
    assert "wrong-Secret-00" not in done.stdout + done.stderr
    assert not list(tmp_path.rglob("*"))


def test_no_credential_is_in_any_file(
    team: Any, s3: Path, database: str, cut_off: tuple[int, str], delivered: str
) -> None:
    """The password is not in the run's folder, MLflow's artifacts, its database or the output."""
    secrets = [PASSWORD, os.environ["FSSPEC_S3_SECRET"], team.environment["HF_TOKEN"], DATABASE_SECRET]
    dump = subprocess.run(["pg_dump", database], check=True, capture_output=True).stdout
    assert b"pipeline.yaml" in dump or b"mlflow.parentRunId" in dump
    texts = {"the database": dump, "said": f"{cut_off[1]}{delivered}".encode()}
    files = [path for root in (team.folder, s3 / "mlflow") for path in root.rglob("*") if path.is_file()]
    assert len(files) > 20
    texts |= {str(path): path.read_bytes() for path in files}
    assert [(name, secret) for name, text in texts.items() for secret in secrets if secret.encode() in text] == []
