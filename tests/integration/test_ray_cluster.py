"""Runs on an existing Ray cluster: tokens, variables, other jobs, submitted jobs."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.bench.synthetic import write_shards
from pipeline.shards.build import build_index

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
HOLD = """
import sys, ray
ray.init(address=sys.argv[1], log_to_driver=False)
group = ray.util.placement_group([{"CPU": 1}] * int(sys.argv[2]))
ray.get(group.ready())
print("holds", flush=True)
sys.stdin.read()
"""

# `minivit`, except that it fails when it reads a shard, itself or in its own processes; Ray's workers import the tasks
# unchanged.
ELSEWHERE = """
from pipeline.cli.main import main
from pipeline.shards import build, parallel, verify

def not_here(*_, **__):
    raise AssertionError("not here")

build.ScanTask.__call__ = verify.VerifyTask.__call__ = parallel.ProcessPoolExecutor = not_here
main()
"""


@pytest.fixture
def place(workplace: Any, cluster: dict[str, str]) -> Any:
    workplace.environment.update(cluster)
    return workplace


@pytest.fixture
def others(cluster: dict[str, str]) -> Iterator[Callable[[int], subprocess.Popen[str]]]:
    """Starts another job on the tests' cluster that holds this many CPUs until its standard input is closed."""
    started: list[subprocess.Popen[str]] = []

    def hold(cpus: int) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, cluster["RAY_ADDRESS"], str(cpus)],
            env=os.environ | cluster,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "holds\n"
        return process

    yield hold
    for process in started:
        process.communicate()


@pytest.mark.integration
@pytest.mark.parametrize("token", ["wrong", None])
def test_a_refused_token_is_one_sentence_that_does_not_hold_it(
    place: Any, kit: Any, shards: Path, token: str | None
) -> None:
    place.environment["HOME"] = str(place.folder)  # without a token file
    del place.environment["RAY_AUTH_TOKEN"]
    if token:
        place.environment["RAY_AUTH_TOKEN"] = token * 16
    done = place.minivit("run", place.write(kit.config(shards, "refused", {"pretrain": kit.pretrain()})))
    assert done.code == 6
    refused = f"the Ray cluster at {place.environment['RAY_ADDRESS']} refuses this run, whose token is wrong or missing"
    assert f"cluster.address: {refused}; set RAY_AUTH_TOKEN" in done.error
    assert "wrongwrong" not in done.stdout + done.stderr


@pytest.mark.integration
def test_a_run_waits_for_what_other_jobs_hold_and_says_so(
    place: Any, kit: Any, shards: Path, others: Callable[[int], subprocess.Popen[str]]
) -> None:
    """With the token in a file, and without RAY_AUTH_MODE."""
    (place.folder / "token").write_text(place.environment.pop("RAY_AUTH_TOKEN"))
    del place.environment["RAY_AUTH_MODE"]
    place.environment["RAY_AUTH_TOKEN_PATH"] = str(place.folder / "token")
    holder = others(2)
    raw = kit.config(shards, "waits", {"pretrain": kit.pretrain(duration="2 steps", eval={"every": "2 steps"})})
    process = place.start("run", place.write(raw))
    events = place.stage("waits", "pretrain") / "events.jsonl"
    kit.wait_until(events.is_file, process)
    holder.communicate()
    _, stderr = process.communicate(timeout=280)
    assert process.returncode == 0, stderr
    assert "pretrain: waiting for room for 2 workers; other jobs hold 2 of 3 CPUs\n" in stderr
    assert [json.loads(line)["event"] for line in events.read_text().splitlines()] == ["wait"]


@pytest.mark.integration
def test_index_and_verify_read_only_on_the_cluster_what_they_read_here(cluster: dict[str, str], tmp_path: Path) -> None:
    write_shards(tmp_path / "data")
    expected = build_index(str(tmp_path / "data"), workers=1)
    for path in [tmp_path / "data" / "index.json", *(tmp_path / "data").glob("*.idx")]:
        path.unlink()

    def shards(command: str, environment: dict[str, str] = cluster) -> subprocess.CompletedProcess[str]:
        whole = [sys.executable, "-c", ELSEWHERE, "shards", command, tmp_path / "data"]
        return subprocess.run(whole, env=os.environ | environment, capture_output=True, text=True, timeout=200)

    assert "not here" in shards("index", {}).stderr
    indexed = shards("index")
    assert indexed.returncode == 0, indexed.stderr
    assert expected.digest in indexed.stdout
    assert "not here" in shards("verify", {}).stderr
    verified = shards("verify")
    assert verified.returncode == 0, verified.stderr
    torn = sorted((tmp_path / "data").glob("*.tar"))[0]
    torn.write_bytes(torn.read_bytes()[:-2000])
    verified = shards("verify")
    assert (verified.returncode, torn.name in verified.stdout) == (3, True)


class Pod:
    """A Ray head with a dashboard, which sees its own processes alone, as in a container.

    Its agent takes a free port: where another cluster of this machine holds the default one, no job can be submitted.
    """

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        with socket.socket() as port, socket.socket() as dashboard:
            port.bind(("127.0.0.1", 0))
            dashboard.bind(("127.0.0.1", 0))
            self.port, self.dashboard = port.getsockname()[1], dashboard.getsockname()[1]
        self.environment = os.environ | environment | {"RAY_USAGE_STATS_ENABLED": "0", "MINIVIT_IN_CONTAINER": "1"}
        self.environment |= {"PATH": f"{BIN}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
        self.environment["RAY_DASHBOARD_STARTUP_TIMEOUT_S"] = "200"
        start = [BIN / "ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={self.port}"]
        start += [f"--dashboard-port={self.dashboard}", "--dashboard-agent-listen-port=0", "--num-cpus=1"]
        self.head = subprocess.Popen(
            ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", *start],
            cwd=folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self.head.stdout is not None
        printed = ""
        for line in self.head.stdout:
            printed += line
            if "Ray runtime started" in line:
                return
        pytest.skip(f"needs a PID namespace: {printed}")

    def job(self, command: str, *arguments: str, check: bool = True) -> str:
        """A command of `ray job`; returns what it prints."""
        whole = [BIN / "ray", "job", command, "--address", f"http://127.0.0.1:{self.dashboard}", *arguments]
        done = subprocess.run(whole, env=self.environment, capture_output=True, text=True, timeout=200)
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def submit(self, name: str, *command: str) -> None:
        """Submit a job; the dashboard's agent, which starts it, comes up some time after the head."""
        due = time.monotonic() + 200
        while "submitted successfully" not in (
            said := self.job("submit", f"--submission-id={name}", "--no-wait", "--", *command, check=False)
        ):
            assert time.monotonic() < due, said
            time.sleep(1)

    def within(self, *command: str) -> None:
        """Runs a command as Kubernetes runs a pod's hook."""
        [first] = Path(f"/proc/{self.head.pid}/task/{self.head.pid}/children").read_text().split()
        enter = ["nsenter", "--target", first, "--pid", "--mount", "--", *command]
        subprocess.run(enter, env=self.environment, check=True, timeout=200)


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Pod]:
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    made = Pod(tmp_path, token | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"})
    yield made
    made.head.kill()
    made.head.communicate()


@pytest.mark.integration
@pytest.mark.root
@pytest.mark.timeout(900)
def test_a_submitted_job_commits_before_its_pod_ends_and_resumes(
    workplace: Any, kit: Any, shards: Path, pod: Pod
) -> None:
    """Runs launch/pretrain.sh in the folder where Ray was started; status 75 counts as a failure, to be retried."""
    stage = kit.pretrain(duration="1000 steps", eval={"every": "1000 steps"}, checkpoint={"every": "1000 steps"})
    raw = kit.config(shards, "job", {"pretrain": stage | {"log_every": 1}})
    raw["cluster"] = {"workers": 1}
    command = [str(ROOT / "launch" / "pretrain.sh"), workplace.write(raw)]
    pod.submit("first", *command)
    kit.wait_until(lambda: workplace.rows("job", "pretrain"), pod.head, 300)
    pod.within(sys.executable, "-P", "-m", "pipeline.cluster.leave", "100")
    assert "failed" in pod.job("status", "first").lower()
    assert "exit code 75" in pod.job("status", "first")
    assert "SIGTERM: committing a checkpoint, then stopping" in pod.job("logs", "first", check=False)
    assert workplace.status("job", "pretrain")["state"] == "interrupted"
    pod.submit("second", *command)
    kit.wait_until(lambda: "pretrain: resumes at step " in pod.job("logs", "second", check=False), pod.head, 300)
