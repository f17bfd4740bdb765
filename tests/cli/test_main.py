from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from pipeline import __version__
from pipeline.cli.main import COMMANDS, cli, keep_working_folder_out, main

MINIVIT = Path(sys.executable).with_name("minivit")
HELP_LIMIT_S = 0.5


def minivit(*arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([MINIVIT, *arguments], capture_output=True, text=True, cwd=cwd, env=os.environ | environment)


def test_help_takes_half_a_second_at_most() -> None:
    """The best processor time of several runs, because other jobs on the machine must not count."""
    minivit("--help")  # compiles
    used = []
    for _ in range(3):
        before, began = os.times(), time.perf_counter()
        done = minivit("--help")
        after, wall = os.times(), time.perf_counter() - began
        cpu = after.children_user + after.children_system - before.children_user - before.children_system
        used.append(min(cpu, wall))
    assert done.returncode == 0
    assert min(used) <= HELP_LIMIT_S


def test_help_names_every_command() -> None:
    text = minivit("--help").stdout
    assert all(name in text and summary in text for name, (_, _, summary) in COMMANDS.items())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_there_and_explains_itself(name: str) -> None:
    module, attribute, _ = COMMANDS[name]
    command = getattr(import_module(module), attribute)
    assert isinstance(command, click.Command)
    assert command.name == name
    assert CliRunner().invoke(cli, [name, "--help"]).exit_code == 0


def test_version() -> None:
    assert minivit("--version").stdout == f"minivit, version {__version__}\n"


def test_an_unknown_command_is_refused() -> None:
    done = minivit("rnu")
    assert done.returncode == 2
    assert "rnu" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("number", "status"), [(errno.ENOSPC, 5), (errno.EACCES, 1)])
def test_an_error_of_the_disk_is_one_sentence(
    number: int, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def write(**options: Any) -> None:
        raise OSError(number, os.strerror(number), "runs/a/run.json")

    monkeypatch.setattr("pipeline.cli.main.cli", write)
    monkeypatch.setattr("pipeline.cli.main.keep_working_folder_out", lambda: None)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == status
    said = capsys.readouterr().err
    assert said.startswith(f"error: runs/a/run.json: {os.strerror(number)}")
    assert ("; make room and run the same command again" in said) == (status == 5)


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = minivit("--debug", "run", "nowhere.yaml", cwd=tmp_path)
    assert done.returncode != 0
    assert "Traceback" in done.stderr


def test_completion_is_offered() -> None:
    environment = os.environ | {"_MINIVIT_COMPLETE": "bash_complete", "COMP_WORDS": "minivit ch", "COMP_CWORD": "1"}
    done = subprocess.run([MINIVIT], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "plain,checkpoints"


@pytest.mark.parametrize("path", ["", ":/elsewhere"])
def test_modules_of_the_users_folder_are_not_imported(path: str, tmp_path: Path) -> None:
    for name in ("code", "json", "logging", "numpy", "queue", "random", "select", "signal"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a module of the user')\n")
    arguments = ["--out", "data", "--classes", "1", "--per-class", "4", "--size", "8", "--samples-per-shard", "2"]
    done = minivit("shards", "make", "fractals", *arguments, "--workers", "2", cwd=tmp_path, PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "data").rglob("*.tar"))) > 1


@pytest.mark.parametrize(("before", "after"), [(":lib", "lib"), ("lib::/other:", "lib:/other"), ("", ""), (None, None)])
def test_empty_entries_of_the_path_do_not_reach_children(
    before: str | None, after: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONSAFEPATH", "")  # put back afterwards
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delenv("PYTHONPATH", raising=False)
    if before is not None:
        monkeypatch.setenv("PYTHONPATH", before)
    keep_working_folder_out()
    assert os.environ["PYTHONSAFEPATH"] == "1"
    assert os.environ.get("PYTHONPATH") == after
