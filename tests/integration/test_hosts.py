"""Two hosts in network namespaces, each with a Ray node, and the failures that can happen to them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.bench.namespaces import Namespace, hosts_on_bridge

pytestmark = [
    pytest.mark.integration,
    pytest.mark.root,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for network namespaces"),
]

RAY, MINIVIT = (Path(sys.executable).with_name(name) for name in ("ray", "minivit"))
DIALS = Path(__file__).parents[2] / "launch" / "ray.env"
# On an idle machine, training continues within 60 s; untuned, Ray alone takes 135 s to notice a lost host.
RECOVERY_S, JOIN_S, ANSWER_S, STALL_TIMEOUT_S = 130, 300, 60, 30
PORT = 6399


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


class Host:
    """A network namespace with one Ray node of one CPU."""

    def __init__(self, number: int, namespace: Namespace, environment: dict[str, str]) -> None:
        self.number, self.environment = number, environment
        self.namespace, self.address, self.cable = namespace
        self.node: subprocess.Popen[bytes] | None = None

    def command(self, *arguments: str | Path) -> list[str]:
        return ["ip", "netns", "exec", self.namespace, *map(str, arguments)]

    def start(self, folder: Path, *arguments: str) -> None:
        ray = [RAY, "start", "--block", "--num-cpus=1", *arguments]
        log = (folder / f"node-{self.number}.log").open("a")
        self.node = subprocess.Popen(
            self.command(*ray, f"--node-ip-address={self.address}"),
            env=self.environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )

    def has_node(self) -> bool:
        """Whether its Ray node is running or starting."""
        return self.node is not None and self.node.poll() is None

    def processes(self) -> list[psutil.Process]:
        done = subprocess.run(["ip", "netns", "pids", self.namespace], capture_output=True, text=True, check=False)
        return [psutil.Process(int(pid)) for pid in done.stdout.split() if psutil.pid_exists(int(pid))]

    def stop(self) -> None:
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                process.kill()
        if self.node is not None:
            self.node.wait(timeout=30)


class Hosts:
    """Two hosts on a bridge; the first holds the head of the Ray cluster and the driver."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        dials = dict(line.split("=", 1) for line in DIALS.read_text().splitlines() if "=" in line and line[0] != "#")
        bare = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self.environment = (
            bare
            | dials
            | {
                "RAY_AUTH_MODE": "token",
                "RAY_AUTH_TOKEN": secrets.token_hex(32),
                "GLOO_SOCKET_IFNAME": "eth0",
                "OMP_NUM_THREADS": "1",
                "RAY_TMPDIR": str(folder / "ray"),
            }
        )
        self.links = ExitStack()
        namespaces = self.links.enter_context(hosts_on_bridge(2, "10.77.0"))
        self.first, self.second = (Host(number, each, self.environment) for number, each in enumerate(namespaces, 1))
        self.address = f"{self.first.address}:{PORT}"
        self.join()

    def join(self) -> None:
        """Start the nodes that are not running and wait until both are in the cluster; slow ones may give up."""
        due = time.monotonic() + JOIN_S
        while self.alive() != 2:
            assert time.monotonic() < due, "".join(path.read_text() for path in sorted(self.folder.glob("node-*.log")))
            if not self.first.has_node():
                self.first.start(self.folder, "--head", f"--port={PORT}", "--include-dashboard=false")
            if not self.second.has_node():
                self.second.start(self.folder, f"--address={self.address}")
            time.sleep(1)
        self.second_is_sound = True

    def alive(self) -> int:
        """The nodes that Ray considers alive."""
        if not self.first.has_node():
            return 0
        try:
            return int(self.ask_ray("sum(node['Alive'] for node in ray.nodes())") or 0)
        except subprocess.TimeoutExpired:
            return 0

    def drain_second(self) -> None:
        """Tell Ray that the second host will be preempted."""
        self.second_is_sound = False
        mine = f"n['Alive'] and n['NodeManagerAddress'] == '{self.second.address}'"
        node = self.ask_ray(f"*(n['NodeID'] for n in ray.nodes() if {mine})")
        reason = [
            "--reason",
            "DRAIN_NODE_REASON_PREEMPTION",
            "--reason-message",
            "spot",
            "--deadline-remaining-seconds",
        ]
        self.in_first([RAY, "drain-node", "--node-id", node, *reason, "300"])

    def ask_ray(self, question: str) -> str:
        """The value of an expression on the first host, extracted from among Ray's messages about lost nodes."""
        code = f"import ray; ray.init(log_to_driver=False); print('answer:', {question})"
        found = re.search(r"^answer: (.*)$", self.in_first([sys.executable, "-c", code]), re.MULTILINE)
        return found.group(1) if found else ""

    def in_first(self, command: list[str | Path]) -> str:
        """Standard output of a command on the first host, joined to the cluster."""
        done = subprocess.run(
            self.first.command(*command),
            env=self.environment | {"RAY_ADDRESS": self.address},
            capture_output=True,
            text=True,
            check=False,
            timeout=ANSWER_S,
        )
        return done.stdout.strip()

    def run(self, config: str, folder: Path) -> subprocess.CompletedProcess[str]:
        """A pipeline on both hosts, to its end."""
        return subprocess.run(
            self.first.command(MINIVIT, "run", config),
            cwd=folder,
            env=self.environment | {"RAY_ADDRESS": self.address},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    def unplug(self) -> None:
        self.second_is_sound = False
        ip("link", "set", self.second.cable, "down")

    def replace_second(self) -> None:
        """Let a new node of the second host join, because Ray does not readmit a node that it declared dead."""
        ip("link", "set", self.second.cable, "up")
        self.second.stop()
        self.join()

    def kill_second_raylet(self) -> None:
        self.second_is_sound = False
        [raylet] = [process for process in self.second.processes() if process.name() == "raylet"]
        raylet.kill()

    def close(self) -> None:
        for host in (self.second, self.first):
            host.stop()
        self.links.close()


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    folder = Path(tempfile.mkdtemp(prefix="mv"))  # Ray's sockets need a short path
    hosts = Hosts(folder)
    try:
        yield hosts
    finally:
        hosts.close()
        shutil.rmtree(folder, ignore_errors=True)


class Run:
    """A pipeline of one training stage that does not end by itself, driven from the first host."""

    def __init__(self, hosts: Hosts, workplace: Any, name: str) -> None:
        self.hosts, self.workplace, self.name = hosts, workplace, name
        self.folder = workplace.stage(name, "pretrain")
        self.process = self.start()

    def start(self) -> subprocess.Popen[bytes]:
        log = (self.workplace.folder / f"{self.name}.log").open("a")
        return subprocess.Popen(
            self.hosts.first.command(MINIVIT, "run", f"{self.name}.yaml"),
            cwd=self.workplace.folder,
            env=self.hosts.environment | {"RAY_ADDRESS": self.hosts.address},
            stdout=log,
            stderr=log,
        )

    @property
    def text(self) -> str:
        """The driver's output so far."""
        return (self.workplace.folder / f"{self.name}.log").read_text()

    def events(self) -> list[dict[str, Any]]:
        path = self.folder / "events.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []

    def changes(self) -> list[dict[str, Any]]:
        """The events, without the one that tells of a save that a kill interrupted."""
        return [event for event in self.events() if event["event"] != "passed_over"]

    def has_committed(self) -> bool:
        return any(self.folder.glob("checkpoints/step-*/manifest.json"))

    def trains_on(self, workers: int, since: float) -> bool:
        """Whether a step that began after `since` ran on this many workers."""
        rows = [row for row in self.workplace.rows(self.name, "pretrain") if row["time"] > since]
        return bool(rows) and rows[-1]["speed/world_size"] == workers

    def wait(self, condition: Callable[[], Any], within_s: float = 400) -> float:
        """Seconds until a condition holds."""
        began = time.monotonic()
        while not condition():
            assert self.process.poll() is None, self.text
            assert time.monotonic() - began < within_s, self.text
            time.sleep(0.1)
        return time.monotonic() - began

    def train_on(self, workers: int, within_s: float = 400) -> float:
        since = time.time()
        return self.wait(lambda: self.trains_on(workers, since), within_s)

    def rank(self, number: int) -> psutil.Process:
        """The process of a rank."""
        log = str(self.folder.resolve() / "logs" / f"rank-{number:05d}.log")
        for process in (*self.hosts.first.processes(), *self.hosts.second.processes()):
            with contextlib.suppress(psutil.Error):
                if any(file.path == log for file in process.open_files()):
                    return process
        raise AssertionError(f"no process writes {log}")


@pytest.fixture(scope="module")
def run(hosts: Hosts, kit: Any, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A run on both hosts, which the tests of this module disturb one after the other."""
    workplace = kit.Workplace(tmp_path_factory.mktemp("hosts"))
    stage = kit.pretrain(duration="1M steps", log_every=1, eval={"every": "1M steps"})
    stage["checkpoint"] = {"every": "1M steps", "every_minutes": 0.03}
    config = kit.config(shards, "endless", {"pretrain": stage})
    config["cluster"] = {"workers": {"min": 1, "max": 2}, "stall_timeout_s": STALL_TIMEOUT_S}
    workplace.write(config, "endless.yaml")
    run = Run(hosts, workplace, "endless")
    try:
        yield run
    finally:
        run.process.kill()


@pytest.fixture
def two_hosts(run: Run, hosts: Hosts) -> None:
    """Each test begins with a run that trains on both hosts and has a checkpoint, whatever the previous test did."""
    if not hosts.second_is_sound:
        hosts.replace_second()
    run.train_on(2)
    run.wait(run.has_committed)


@pytest.mark.parametrize(
    ("lacks", "code", "said"),
    [
        ("runs", 6, "stages/pretrain is not shared: node "),
        ("data", 3, " (on node "),
    ],
)
def test_a_folder_that_a_host_lacks_is_one_sentence(
    lacks: str, code: int, said: str, hosts: Hosts, kit: Any, shards: Path, tmp_path: Path
) -> None:
    """On the second host an empty file system hides it, as a folder of the node's own disk would."""
    workplace = kit.Workplace(tmp_path)
    shutil.copytree(shards, tmp_path / "data")
    config = kit.config(tmp_path / "data", "lacks", {"pretrain": kit.pretrain(duration="2 steps")})
    config["cluster"] = {"workers": 2}
    workplace.write(config, "lacks.yaml")
    (tmp_path / "runs").mkdir()
    (raylet,) = [process for process in hosts.second.processes() if process.name() == "raylet"]
    inside = ["nsenter", "--target", str(raylet.pid), "--mount", "--"]
    subprocess.run([*inside, "mount", "-t", "tmpfs", "none", tmp_path / lacks], check=True)
    try:
        done = hosts.run("lacks.yaml", tmp_path)
    finally:
        subprocess.run([*inside, "umount", tmp_path / lacks], check=True)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
    assert said in done.stderr


@pytest.mark.skipif(not shutil.which("iptables"), reason="needs iptables")
def test_ranks_that_a_firewall_parts_name_the_address_that_they_cannot_reach(
    hosts: Hosts, kit: Any, shards: Path, tmp_path: Path
) -> None:
    """Only the ports that the system chooses from now on are closed: Ray's processes run already."""
    workplace = kit.Workplace(tmp_path)
    config = kit.config(shards, "parted", {"pretrain": kit.pretrain(duration="2 steps")})
    config["cluster"] = {"workers": 2, "max_restarts": 0}
    workplace.write(config, "parted.yaml")
    closed = ["INPUT", "-i", "eth0", "-p", "tcp", "--syn", "--dport", "50000:50999", "-j", "DROP"]

    def both(*command: str) -> None:
        for host in (hosts.first, hosts.second):
            subprocess.run(host.command(*command), check=True, capture_output=True)

    both("sysctl", "net.ipv4.ip_local_port_range=50000 50999")
    both("iptables", "-A", *closed)
    try:
        began = time.monotonic()
        done = hosts.run("parted.yaml", tmp_path)
        took = time.monotonic() - began
    finally:
        both("iptables", "-D", *closed)
        both("sysctl", "net.ipv4.ip_local_port_range=32768 60999")
    assert (done.returncode, "Traceback" in done.stderr) == (6, False), done.stderr
    assert re.search(r"rank 1, on \S+, could not reach rank 0 at 10\.77\.0\.\d:\d+ within 60 s", done.stderr)
    assert "open all ports between the nodes" in done.stderr
    print(f"a rank behind a firewall says so after {took:.0f} s")


@pytest.mark.usefixtures("two_hosts")
def test_a_host_that_is_cut_off_and_comes_back(run: Run, hosts: Hosts) -> None:
    hosts.unplug()
    print(f"on with the other host after {run.train_on(1, within_s=RECOVERY_S):.1f} s")
    restart, resume = run.changes()[-2:]
    assert (restart["event"], restart["workers_before"]) == ("restart", 2)
    assert (resume["event"], resume["workers_before"], resume["workers"]) == ("resume", 2, 1)
    assert resume["steps_lost"] >= 0
    hosts.replace_second()
    run.train_on(2)
    resize, resume = run.events()[-2:]
    assert "committed and stopped, because there is room for more workers" in resize["message"]
    assert (resume["steps_lost"], resume["workers"]) == (0, 2)


@pytest.mark.usefixtures("two_hosts")
def test_a_frozen_rank_leaves_the_stacks_of_the_others_and_is_replaced(run: Run) -> None:
    frozen = run.rank(1)
    frozen.suspend()
    began = time.monotonic()
    run.wait(lambda: run.events()[-1]["event"] == "resume" and not frozen.is_running())
    assert time.monotonic() - began > STALL_TIMEOUT_S / 2
    run.train_on(2)
    log = (run.folder / "logs" / "rank-00000.log").read_text()
    assert "Timeout (" in log
    assert re.search(r"File .*loop\.py.* in (__call__|report_collective)", log)


@pytest.mark.usefixtures("two_hosts")
def test_a_killed_raylet(run: Run, hosts: Hosts) -> None:
    hosts.kill_second_raylet()
    print(f"on with the other host after {run.train_on(1, within_s=RECOVERY_S):.1f} s")
    assert run.changes()[-2]["event"] == "restart"


@pytest.mark.usefixtures("two_hosts")
def test_a_preemption_notice_costs_no_step(run: Run, hosts: Hosts) -> None:
    hosts.drain_second()
    run.train_on(1, within_s=RECOVERY_S)
    resize, resume = run.events()[-2:]
    assert "committed and stopped, because 1 node(s) are about to be preempted" in resize["message"]
    assert (resume["steps_lost"], resume["workers"]) == (0, 1)


@pytest.mark.usefixtures("two_hosts")
def test_a_wish_to_stop_is_answered_by_a_commit(run: Run, hosts: Hosts) -> None:
    """The last test: the results of the whole run, on disk and in MLflow."""
    run.process.send_signal(signal.SIGUSR1)
    assert run.process.wait(timeout=300) == 75
    assert "Traceback" not in run.text
    rows = run.workplace.rows("endless", "pretrain")
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    assert run.events()[-1]["event"] == "interrupted"
    status = run.workplace.status("endless", "pretrain")
    client = run.workplace.client()
    found = client.get_run(status["mlflow_run_id"])
    assert (status["state"], found.info.status) == ("interrupted", "KILLED")
    assert found.data.metrics["restart/workers"] == 2
    nodes = [f"{socket.gethostname()}-{host.address}" for host in (hosts.first, hosts.second)]
    assert {f"system/{node}/cpu_utilization_percentage" for node in nodes} <= found.data.metrics.keys()
    history = client.get_metric_history(status["mlflow_run_id"], "train/loss")
    assert sorted(metric.step for metric in history) == [row["step"] for row in rows]
