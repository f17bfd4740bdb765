"""`sbatch launch/pretrain.sh CONFIG` under a real SLURM of two nodes, both on this machine."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

from pipeline.bench.synthetic import SIDE, write_shards

ROOT = Path(__file__).parents[2]
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "srun")
MISSING = [program for program in PROGRAMS if shutil.which(program) is None]
WAIT_S = 280
UNDER_WAY = {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING"}

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for SLURM's daemons"),
    pytest.mark.skipif(bool(MISSING), reason=f"needs {MISSING}: apt-get install slurmctld slurmd slurm-client munge"),
]

SETTINGS = """
ClusterName=test
SlurmctldHost={host}({address})
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
ReturnToService=2
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0
NodeName=n1 NodeHostname={host} NodeAddr={address} Port={ports[1]} CPUs=1
NodeName=n2 NodeHostname={host} NodeAddr={address} Port={ports[2]} CPUs=1
PartitionName=all Nodes=n1,n2 Default=YES
"""


@pytest.fixture(scope="module")
def slurm() -> Iterator[dict[str, str]]:
    """The environment of a cluster user, with this environment first on PATH."""
    folder = Path(tempfile.mkdtemp(prefix="mv"))  # sockets need a short path
    (folder / "state").mkdir()
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o400)
    own = subprocess.run(["hostname", "-I"], capture_output=True, text=True).stdout.split()
    settings = SETTINGS.format(host=socket.gethostname(), address=own[0], folder=folder, ports=free_ports(3))
    (folder / "slurm.conf").write_text(settings)
    # Without Ray's variables, too: those of other tests' clusters on this machine would keep a second node out.
    bare = {k: v for k, v in os.environ.items() if not k.startswith(("VIRTUAL_ENV", "CONDA_PREFIX", "RAY_"))}
    environment = bare | {
        "MINIVIT_IN_CONTAINER": "1",
        "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "SLURM_CONF": str(folder / "slurm.conf"),
    }
    munge = [f"--{kind}={folder}/munge.{kind[:-5]}" for kind in ("key-file", "pid-file", "log-file", "seed-file")]
    daemons = [
        ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *munge],
        ["slurmctld", "-D"],
        *(["slurmd", "-D", "-N", node] for node in ("n1", "n2")),
    ]
    with ExitStack() as stack, (folder / "daemons.log").open("w") as log:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        for command in daemons:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            stack.callback(end, process)
        due = time.monotonic() + 60
        while "idle 2" not in ask(environment, "sinfo", "--noheader", "--format=%T %D"):
            assert time.monotonic() < due, (folder / "daemons.log").read_text()
            time.sleep(0.2)
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


@pytest.mark.parametrize("script", ["absolute", "relative", "link"])
def test_the_copy_in_the_spool_folder_finds_its_checkout(script: str, recorder: dict[str, str], tmp_path: Path) -> None:
    here = tmp_path / "a folder"
    here.mkdir()
    original = ROOT / "launch" / "pretrain.sh"
    (here / "link.sh").symlink_to(original)
    path = {"absolute": original, "relative": os.path.relpath(original, here), "link": Path("link.sh")}[script]
    printed = submit(recorder, here, "--nodes=1", path, "configs/quickstart.yaml", "stages.a.duration=2 epochs")
    assert printed.splitlines() == ["run", str(ROOT / "configs/quickstart.yaml"), "stages.a.duration=2 epochs"]


def test_each_task_of_an_array_finds_it(recorder: dict[str, str], tmp_path: Path) -> None:
    script = ROOT / "launch" / "pretrain.sh"
    printed = submit(recorder, tmp_path, "--array=0-2", script, "configs/quickstart.yaml")
    assert printed.splitlines() == ["run", str(ROOT / "configs/quickstart.yaml")] * 3


@pytest.mark.integration
def test_a_pipeline_runs_over_two_nodes(slurm: dict[str, str], tmp_path: Path) -> None:
    write_shards(tmp_path / "data")
    stage = {
        "type": "pretrain",
        "model": {"variant": "nano", "image_size": SIDE, "patch_size": 4, "channels": 1},
        "data": {"train": "train", "lanes": 4, "window": 8, "augment": {"crop": "none"}},
        "duration": "2 steps",
        "global_batch_size": 8,
    }
    config = {
        "name": "two",
        "cluster": {"workers": 2},
        "datasets": {"train": {"shards": "data/train-*.tar", "mean": [0.4], "std": [0.3]}},
        "stages": {"pretrain": stage},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    printed = submit(slurm, tmp_path, "--nodes=2", ROOT / "launch" / "pretrain.sh", "config.yaml")
    assert "pretrain: finished in" in printed
    assert len(list((tmp_path / "runs/two/stages/pretrain/logs").glob("rank-*.log"))) == 2
