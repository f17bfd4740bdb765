"""`sbatch launch/pretrain.sh CONFIG` under a real SLURM of two nodes, in network namespaces of this machine."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import stat
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
import yaml

from pipeline.bench.namespaces import hosts_on_bridge
from pipeline.bench.synthetic import SIDE, write_shards

ROOT = Path(__file__).parents[2]
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "srun")
MISSING = [program for program in PROGRAMS if shutil.which(program) is None]
WAIT_S = 280
GRACE_S = 120  # from TERM to KILL of a cancelled job; SLURM's 30 are for a machine that is not busy
RECOVERY_S = 130  # on a machine to itself a lost node costs less than 60 s
UNDER_WAY = {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING"}

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for SLURM's daemons"),
    pytest.mark.skipif(bool(MISSING), reason=f"needs {MISSING}: apt-get install slurmctld slurmd slurm-client munge"),
]

NETWORK = "10.79.0"
SETTINGS = """
ClusterName=test
SlurmctldHost={host}({network}.254)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=20
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0
GresTypes=gpu
KillWait={grace_s}
NodeName=n1 NodeHostname={host} NodeAddr={network}.1 Port={ports[1]} CPUs=2 Gres=gpu:2
NodeName=n2 NodeHostname={host} NodeAddr={network}.2 Port={ports[2]} CPUs=2 Gres=gpu:2
PartitionName=all Nodes=n1,n2 Default=YES
"""


@pytest.fixture(scope="module")
def slurm() -> Iterator[dict[str, str]]:
    """The environment of a cluster user, with this environment first on PATH; each node is a host of its own."""
    folder = Path(tempfile.mkdtemp(prefix="mv"))  # sockets need a short path
    (folder / "state").mkdir()
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o400)
    names = {"host": socket.gethostname(), "network": NETWORK, "folder": folder}
    settings = SETTINGS.format(**names, ports=free_ports(3), grace_s=GRACE_S)
    (folder / "slurm.conf").write_text(settings)
    (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-1]\n")
    for number in range(2):  # SLURM needs devices, and only hands them out
        os.mknod(folder / f"gpu{number}", stat.S_IFCHR, os.stat(os.devnull).st_rdev)
    # Without Ray's variables, too: those of other tests' clusters on this machine would keep a second node out.
    bare = {k: v for k, v in os.environ.items() if not k.startswith(("VIRTUAL_ENV", "CONDA_PREFIX", "RAY_"))}
    environment = bare | {
        "MINIVIT_IN_CONTAINER": "1",
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "eth0",  # this machine's name does not lead to its namespaces
        "RAY_worker_niceness": "0",  # with Ray's 15, ranks starve beside other tests
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "SLURM_CONF": str(folder / "slurm.conf"),
    }
    munge = [f"--{kind}={folder}/munge.{kind[:-5]}" for kind in ("key-file", "pid-file", "log-file", "seed-file")]
    daemons = [
        ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *munge],
        ["slurmctld", "-D"],
    ]
    with ExitStack() as stack, (folder / "daemons.log").open("w") as log:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        for number, host in enumerate(stack.enter_context(hosts_on_bridge(2, NETWORK)), 1):
            enter = ["nsenter", f"--net=/run/netns/{host.name}"]  # `ip netns exec` would hide the cgroups
            daemons.append([*enter, "slurmd", "-D", "-N", f"n{number}"])
        for command in daemons:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            stack.callback(end, process)
        due = time.monotonic() + 60
        while "idle 2" not in ask(environment, "sinfo", "--noheader", "--format=%T %D"):
            assert time.monotonic() < due, (folder / "daemons.log").read_text()
            time.sleep(0.2)
        stack.callback(end_jobs, environment)
        yield environment


def free_ports(number: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait(timeout=30)


def end_jobs(environment: dict[str, str]) -> None:
    """Ends what a failed test has left running, while there are daemons that do it."""
    due = time.monotonic() + 30
    while (jobs := ask(environment, "squeue", "--noheader", "--format=%i").split()) and time.monotonic() < due:
        ask(environment, "scancel", "--full", "--signal=KILL", *jobs)
        ask(environment, "scancel", *jobs)
        time.sleep(1)


def ask(environment: dict[str, str], *command: str | Path) -> str:
    return subprocess.run(command, env=environment, capture_output=True, text=True).stdout


def submit(environment: dict[str, str], folder: Path, *arguments: str | Path) -> str:
    """Submits a job from a folder and waits for its end; returns what it printed. Fails unless it succeeded."""
    command = ["sbatch", "--parsable", "--output=job-%a.log", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    job, due = done.stdout.strip(), time.monotonic() + WAIT_S
    while (states := set(re.findall("JobState=(\\w+)", ask(environment, "scontrol", "show", "job", job)))) & UNDER_WAY:
        if time.monotonic() > due:
            break
        time.sleep(0.1)
    printed = "".join(log.read_text() for log in sorted(folder.glob("job-*.log")))
    if states != {"COMPLETED"}:
        ask(environment, "scancel", job)
        logs = [*folder.glob("runs/*/*.log"), *folder.glob("runs/*/stages/*/logs/*")]
        pytest.fail("\n".join([f"{states}", printed, *(f"{log}:\n{log.read_text()}" for log in logs)]))
    return printed


@pytest.fixture
def recorder(tmp_path: Path, slurm: dict[str, str]) -> dict[str, str]:
    """The user's environment with a `minivit` that prints its arguments, one a line."""
    command = tmp_path / "bin" / "minivit"
    command.parent.mkdir()
    command.write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    command.chmod(0o755)
    return slurm | {"PATH": f"{command.parent}:{slurm['PATH']}"}


MINIVIT = """
import sys, time
from types import SimpleNamespace
from pipeline.stages.stop import StopRequest

def note(text):
    with open("driver.log", "a") as file:
        file.write(text.partition(":")[0] + "\\n")

with StopRequest(SimpleNamespace(say=note)) as stop:
    note("starts")
    while not stop.asked:
        time.sleep(0.05)
    time.sleep(1)
    note("commits")
sys.exit(75)
"""


class Driver:
    """A job whose `minivit` starts, and commits within a second of a signal; without Ray.

    Args:
        minivit, ray: stand in for the commands. A node of Ray has joined when it has printed its arguments.
        script: what is submitted.
    """

    def __init__(
        self,
        environment: dict[str, str],
        folder: Path,
        *options: str,
        minivit: str = f"#!{sys.executable}\n{MINIVIT}",
        ray: str = 'echo "$@"; sleep 1000',
        script: Path = ROOT / "launch" / "pretrain.sh",
    ) -> None:
        self.folder, bin = folder, folder / "bin"
        bin.mkdir()
        log = "slurm-$SLURM_JOB_ID-ray.log"
        wait = f'while [ "$(grep -c -e --num-cpus {log})" -lt "$2" ]; do sleep 0.1; done; exit'
        for name, text in (
            ("minivit", minivit),
            ("ray", f"#!/bin/bash\n{ray}\n"),
            (
                "python",
                f'#!/bin/bash\nif [[ $1 == *wait_for_nodes.py ]]; then {wait}; fi\nexec {sys.executable} "$@"\n',
            ),
        ):
            (bin / name).write_text(text)
            (bin / name).chmod(0o755)
        self.environment = environment | {"PATH": f"{bin}:{environment['PATH']}"}
        command = ["sbatch", "--parsable", "--output=job.log", "--open-mode=append", *options]
        command += [str(script), "configs/quickstart.yaml"]
        done = subprocess.run(command, cwd=folder, env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        self.id = done.stdout.strip()

    def words(self) -> list[str]:
        """What the driver has done, over all its starts."""
        return read_lines(self.folder / "driver.log")

    def cpus_of_ray(self) -> list[str]:
        """The CPUs that each of Ray's nodes was started with."""
        return re.findall(r"--num-cpus=(\d+)", "\n".join(read_lines(self.folder / f"slurm-{self.id}-ray.log")))

    def show(self) -> str:
        return ask(self.environment, "scontrol", "show", "job", self.id)

    def wait(self, condition: Callable[[], Any], within_s: float = 100) -> None:
        due = time.monotonic() + within_s
        while not condition():
            printed = "\n".join([self.show(), *self.words(), *read_lines(self.folder / "job.log")])
            assert time.monotonic() < due, printed
            time.sleep(0.1)

    def ends(self, state: str) -> None:
        self.wait(lambda: f"JobState={state} " in self.show())


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_job_that_nears_its_time_limit_commits_and_goes_back_into_the_queue(
    nodes: int, slurm: dict[str, str], tmp_path: Path
) -> None:
    driver = Driver(slurm, tmp_path, f"--nodes={nodes}", "--cpus-per-task=2")
    driver.wait(lambda: driver.words() == ["starts"])
    assert driver.cpus_of_ray() == ["2"] * nodes * (nodes > 1)
    ask(slurm, "scancel", "--batch", "--signal=USR1", driver.id)  # as `#SBATCH --signal=B:USR1@300` sends it
    driver.ends("PENDING")  # for two minutes, after which SLURM starts it again
    assert f"job {driver.id} is being requeued" in (tmp_path / "job.log").read_text()
    assert driver.words() == ["starts", "SIGUSR1", "commits"]
    ask(slurm, "scancel", driver.id)
    driver.ends("CANCELLED")


@pytest.mark.parametrize("nodes", [1, 2])
def test_jobs_on_the_same_nodes_have_gpus_of_their_own(nodes: int, slurm: dict[str, str], tmp_path: Path) -> None:
    """SLURM tells each process which are its own; Ray and CUDA then see no others."""
    minivit = '#!/bin/bash\necho "$CUDA_VISIBLE_DEVICES" >> driver.log\nsleep 1000'
    ray = 'echo "$@ GPUs=$CUDA_VISIBLE_DEVICES"; sleep 1000'
    drivers = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        options = (f"--nodes={nodes}", "--ntasks-per-node=1", "--gpus-per-node=1")
        drivers.append(Driver(slurm, tmp_path / name, *options, minivit=minivit, ray=ray))
    for driver in drivers:
        driver.wait(driver.words)
    assert sorted(word for driver in drivers for word in driver.words()) == ["0", "1"]
    for driver in drivers:
        seen = re.findall(r"GPUs=(\d)", "\n".join(read_lines(driver.folder / f"slurm-{driver.id}-ray.log")))
        assert seen == driver.words() * nodes * (nodes > 1)
        ask(slurm, "scancel", "--full", "--signal=KILL", driver.id)
        ask(slurm, "scancel", driver.id)


def test_a_task_of_an_array_is_requeued_without_the_others(slurm: dict[str, str], tmp_path: Path) -> None:
    """Each under a name of its own, by a script as in the README. One of the tasks has the array's own id."""
    script = tmp_path / "array.sh"
    script.write_text(f'#!/bin/bash\nexec {ROOT}/launch/pretrain.sh "$1" name=seed-$SLURM_ARRAY_TASK_ID\n')
    driver = Driver(slurm, tmp_path, "--array=0-1", script=script)
    driver.wait(lambda: driver.words() == ["starts"] * 2)
    match = re.search(rf"JobId={driver.id} ArrayJobId={driver.id} ArrayTaskId=(\d)\s", driver.show())
    assert match
    task = f"{driver.id}_{match[1]}"
    ask(slurm, "scancel", "--batch", "--signal=USR1", task)
    driver.ends("PENDING")
    assert f"job {task} is being requeued" in (tmp_path / "job.log").read_text()
    assert sorted(re.findall(r"JobState=(\w+)", driver.show())) == ["PENDING", "RUNNING"]
    assert driver.words() == ["starts", "starts", "SIGUSR1", "commits"]
    ask(slurm, "scancel", "--full", "--signal=KILL", driver.id)
    ask(slurm, "scancel", driver.id)


def test_a_job_that_may_not_be_requeued_ends_with_the_run_s_status(slurm: dict[str, str], tmp_path: Path) -> None:
    driver = Driver(slurm, tmp_path, "--nodes=1", "--no-requeue")
    driver.wait(lambda: driver.words() == ["starts"])
    ask(slurm, "scancel", "--batch", "--signal=USR1", driver.id)
    driver.ends("FAILED")
    assert "ExitCode=75:0" in driver.show()
    assert driver.words() == ["starts", "SIGUSR1", "commits"]


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_cancelled_job_commits(nodes: int, slurm: dict[str, str], tmp_path: Path) -> None:
    driver = Driver(slurm, tmp_path, f"--nodes={nodes}", "--exclusive")
    driver.wait(lambda: driver.words() == ["starts"])
    assert driver.cpus_of_ray() == ["2"] * nodes * (nodes > 1)
    ask(slurm, "scancel", driver.id)
    driver.ends("CANCELLED")
    driver.wait(lambda: len(driver.words()) > 2)
    assert driver.words() == ["starts", "SIGTERM", "commits"], "a second signal would end it at once"


def test_a_node_without_the_environment_ends_the_job_at_once(slurm: dict[str, str], tmp_path: Path) -> None:
    ray = '[ "$SLURMD_NODENAME" = n1 ] || exec /missing/python\necho "$@"; sleep 1000'
    driver = Driver(slurm, tmp_path, "--nodes=2", ray=ray)
    driver.ends("FAILED")
    printed = (tmp_path / "job.log").read_text()
    assert "a Ray node exited before 2 nodes had joined; its output in" in printed
    assert "/missing/python: No such file or directory" in printed
    assert driver.words() == []


@pytest.mark.parametrize("script", ["absolute", "relative", "link"])
def test_the_copy_in_the_spool_folder_finds_its_checkout(script: str, recorder: dict[str, str], tmp_path: Path) -> None:
    here = tmp_path / "a folder"
    here.mkdir()
    original = ROOT / "launch" / "pretrain.sh"
    (here / "link.sh").symlink_to(original)
    path = {"absolute": original, "relative": os.path.relpath(original, here), "link": Path("link.sh")}[script]
    printed = submit(recorder, here, "--nodes=1", path, "configs/quickstart.yaml", "stages.a.duration=2 epochs")
    assert printed.splitlines() == ["run", str(ROOT / "configs/quickstart.yaml"), "stages.a.duration=2 epochs"]


@pytest.mark.parametrize("nodes", [1, 2])
def test_each_task_of_an_array_finds_it_and_every_status_reaches_slurm(
    nodes: int, slurm: dict[str, str], tmp_path: Path
) -> None:
    minivit = '#!/bin/bash\nprintf "%s\\n" "$*" >> driver.log\nexit "$SLURM_ARRAY_TASK_ID"\n'
    driver = Driver(slurm, tmp_path, f"--nodes={nodes}", "--array=0,2,5,75", minivit=minivit)
    driver.wait(lambda: not UNDER_WAY & set(re.findall(r"JobState=(\w+)", driver.show())))
    ended = re.findall(r"ArrayTaskId=(\d+).*?JobState=(\w+).*?ExitCode=(\d+:\d+)", driver.show(), re.S)
    failed = [(code, "FAILED", f"{code}:0") for code in ("2", "5", "75")]
    assert sorted(ended) == [("0", "COMPLETED", "0:0"), *failed]
    assert driver.words() == [f"run {ROOT / 'configs/quickstart.yaml'}"] * 4


def write_config(folder: Path) -> None:
    """A pipeline of one small, endless training stage on one or two workers, with its shards."""
    folder.mkdir(exist_ok=True)
    write_shards(folder / "data")
    stage = {
        "type": "pretrain",
        "model": {"variant": "nano", "depth": 1, "image_size": SIDE, "patch_size": 4, "channels": 1},
        "data": {"train": "train", "lanes": 4, "window": 8, "augment": {"crop": "none"}},
        "duration": "1M steps",
        "global_batch_size": 8,
        "log_every": 1,
        "checkpoint": {"every": "1M steps", "every_minutes": 0.1},
    }
    config = {
        "name": "two",
        "cluster": {"workers": {"min": 1, "max": 2}},
        "datasets": {"train": {"shards": "data/train-*.tar", "mean": [0.4], "std": [0.3]}},
        "stages": {"pretrain": stage},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


class Job:
    """An endless training of a worker on each node, which outlives the loss of one."""

    def __init__(self, environment: dict[str, str], folder: Path, *, nodes: int = 2) -> None:
        self.environment, self.folder, self.log = environment, folder, folder / "job.log"
        self.stage = folder / "runs/two/stages/pretrain"
        write_config(folder)
        self.submitted = time.time()
        options = [
            "--parsable",
            f"--nodes={nodes}",
            "--no-kill",
            "--requeue",
            "--open-mode=append",
            f"--output={self.log}",
        ]
        command = ["sbatch", *options, ROOT / "launch" / "pretrain.sh", "config.yaml"]
        self.id = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True).stdout.strip()

    def state(self) -> str:
        match = re.search("JobState=(\\w+)", ask(self.environment, "scontrol", "show", "job", self.id))
        return match[1] if match else "UNKNOWN"

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in read_lines(self.stage / "events.jsonl")]

    def wait(self, condition: Callable[[], Any], within_s: float = WAIT_S) -> Any:
        due = time.monotonic() + within_s
        while not (found := condition()):
            assert time.monotonic() < due, f"{self.state()}\n{self.log.read_text() if self.log.is_file() else ''}"
            time.sleep(0.1)
        return found

    def step_after(self, moment: float, workers: int, within_s: float = WAIT_S) -> float:
        """Seconds from a moment to the end of the first step of so many workers after it."""

        def first() -> float | None:
            rows = [json.loads(line) for line in read_lines(self.stage / "metrics.jsonl")]
            made = [row for row in rows if row["time"] > moment and row.get("speed/world_size") == workers]
            return made[0]["time"] - moment if made else None

        return float(self.wait(first, within_s))

    def committed_after(self, moment: float) -> float:
        """Seconds from a moment to the commit with which the stage was interrupted."""
        self.wait(lambda: self.events()[-1:] and self.events()[-1]["event"] == "interrupted")
        manifests = [path.stat().st_mtime for path in self.stage.glob("checkpoints/step-*/manifest.json")]
        assert max(manifests) > moment
        return max(manifests) - moment


def read_lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.is_file() else []


@pytest.mark.integration
@pytest.mark.timeout(600)
def test_jobs_that_share_a_node_do_not_meet_and_commit_when_they_are_cancelled(
    slurm: dict[str, str], tmp_path: Path
) -> None:
    """One is on both nodes. SLURM sends TERM to each of their processes, Ray's among them."""
    jobs = []
    for nodes in (1, 2):  # one after the other, as each start of Ray takes this machine's cores
        jobs.append(Job(slurm, tmp_path / str(nodes), nodes=nodes))
        jobs[-1].step_after(jobs[-1].submitted, workers=nodes)
    asked = time.time()
    ask(slurm, "scancel", *(job.id for job in jobs))
    for job in jobs:
        print(f"scancel to the commit: {job.committed_after(asked):.1f} s")
        job.wait(lambda job=job: job.state() == "CANCELLED")
        assert [event["event"] for event in job.events()] == ["interrupted"], "and not restarted"
        said = job.log.read_text()
        assert "Traceback" not in said
        assert "Local node IP" not in said, "what Ray prints is in a file of its own"
    assert "Local node IP" in next(jobs[-1].folder.glob("slurm-*-ray.log")).read_text()


@pytest.fixture(scope="module")
def long_job(slurm: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Job:
    """An endless training on both nodes, which the tests below disturb one after the other."""
    job = Job(slurm, tmp_path_factory.mktemp("long"))
    print(f"sbatch to the first step: {job.step_after(job.submitted, workers=2):.1f} s")
    return job


@pytest.mark.integration
@pytest.mark.timeout(1200)
def test_a_job_is_requeued_ahead_of_its_time_limit_and_goes_on(slurm: dict[str, str], long_job: Job) -> None:
    asked = time.time()
    ask(slurm, "scancel", "--batch", "--signal=USR1", long_job.id)  # as `#SBATCH --signal=B:USR1@120` sends it
    print(f"USR1 to the commit: {long_job.committed_after(asked):.1f} s")
    long_job.wait(lambda: long_job.state() == "PENDING")
    assert f"job {long_job.id} is being requeued" in long_job.log.read_text()
    long_job.wait(lambda: long_job.state() == "RUNNING")
    restarted = time.time()
    print(f"start of the requeued job to the next step: {long_job.step_after(restarted, workers=2):.1f} s")
    [resume] = [event for event in long_job.events() if event["event"] == "resume"]
    assert resume["steps_lost"] == 0
    assert "Traceback" not in long_job.log.read_text()


@pytest.mark.integration
@pytest.mark.timeout(1200)
def test_a_lost_node_costs_a_restart_on_the_other(slurm: dict[str, str], long_job: Job) -> None:
    """The last of this module, as it kills a node's daemon."""
    long_job.step_after(time.time(), workers=2)
    lost = [process for process in psutil.process_iter() if node_of(process) == ("n2", slurm["SLURM_CONF"])]
    assert lost
    killed = time.time()
    for process in lost:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    print(f"kill of a node to the next step: {long_job.step_after(killed, workers=1, within_s=RECOVERY_S):.1f} s")
    assert long_job.events()[-1]["event"] == "resume"
    long_job.wait(lambda: mark_as_down(slurm, "n2"))
    long_job.step_after(time.time(), workers=1)
    assert long_job.state() == "RUNNING", "with --no-kill it goes on without a node that is down"
    ask(slurm, "scancel", long_job.id)  # without its second node, the job stays in SLURM's books
    long_job.wait(lambda: "stopped by SIGTERM" in long_job.log.read_text())


def mark_as_down(environment: dict[str, str], node: str) -> bool:
    """As SLURM does after SlurmdTimeout. True once it is done: a busy controller may refuse the first commands."""
    state = ask(environment, "scontrol", "show", "node", node)
    if "State=DOWN" not in state:
        command = ["scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=lost"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        print(f"{node}, {re.findall('State=.*', state)}: {done.stdout}{done.stderr}")
    return "State=DOWN" in state


def node_of(process: psutil.Process) -> tuple[str | None, str | None]:
    """The node of SLURM that a process runs on, and that SLURM's configuration."""
    try:
        command, environment = process.cmdline(), process.environ()
    except psutil.Error:
        return None, None
    daemon = command[-1] if command[:1] == ["slurmd"] else None
    return environment.get("SLURMD_NODENAME", daemon), environment.get("SLURM_CONF")
