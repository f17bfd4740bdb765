"""The launch scripts as a user calls them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted([*ROOT.glob("launch/*.sh"), ROOT / "docker" / "build.sh", ROOT / ".ci" / "run"])


def run(*command: str | Path, cwd: Path, first_on_path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Runs a script as in a container: with the environment that the tests run in, where it must install nothing."""
    folders = [str(first_on_path)] if first_on_path else []
    path = ":".join([*folders, str(Path(sys.executable).parent), os.environ["PATH"]])
    inherited = {k: v for k, v in os.environ.items() if k not in {"VIRTUAL_ENV", "CONDA_PREFIX", "RAY_ADDRESS"}}
    environment = inherited | {"MINIVIT_IN_CONTAINER": "1", "PATH": path}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script: Path) -> None:
    done = run("shellcheck", "-x", script, cwd=ROOT)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ["pretrain.sh", "test.sh"])
def test_help_from_another_directory(name: str, tmp_path: Path) -> None:
    done = run(ROOT / "launch" / name, "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout.startswith(f"Usage: launch/{name}")


def test_script_finds_the_repository_through_a_link(tmp_path: Path) -> None:
    link = tmp_path / "pretrain"
    link.symlink_to(ROOT / "launch" / "pretrain.sh")
    assert run(link, "--help", cwd=tmp_path).returncode == 0


def test_no_config_is_refused_with_the_usage(tmp_path: Path) -> None:
    done = run(ROOT / "launch" / "pretrain.sh", cwd=tmp_path)
    assert done.returncode == 2
    assert "CONFIG" in done.stderr


def test_missing_config_is_one_sentence_before_anything_is_installed(tmp_path: Path) -> None:
    done = run(ROOT / "launch" / "pretrain.sh", "configs/no-such.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "found no config configs/no-such.yaml" in done.stderr


def test_tests_run_from_another_directory(tmp_path: Path) -> None:
    done = run(ROOT / "launch" / "test.sh", "--collect-only", "-q", "tests/launch/test_scripts.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "test_help_from_another_directory" in done.stdout


@pytest.fixture
def recorder(tmp_path: Path) -> Path:
    """A folder for PATH in which `minivit` prints its arguments, one a line."""
    command = tmp_path / "bin" / "minivit"
    command.parent.mkdir()
    command.write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    command.chmod(0o755)
    return command.parent


@pytest.mark.parametrize("here", [True, False], ids=["in the working directory", "in the repository"])
def test_config_and_overrides_reach_the_command(here: bool, recorder: Path, tmp_path: Path) -> None:
    name = "configs/quickstart.yaml"
    if here:
        (tmp_path / "configs").mkdir()
        (tmp_path / name).touch()
    overrides = ["seed=1", "stages.a.duration=2 epochs"]
    done = run(ROOT / "launch" / "pretrain.sh", name, *overrides, cwd=tmp_path, first_on_path=recorder)
    assert done.stdout.splitlines() == ["run", name if here else str(ROOT / name), *overrides]


COMMANDS = {
    "absolute": "{root}/launch/pretrain.sh",
    "from where it was submitted": "../{checkout}/launch/pretrain.sh",
    "a link": "{tmp}/pretrain",
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize("records", [1, 3], ids=["a job", "an array"])
def test_a_copy_in_slurms_spool_folder_finds_its_checkout(
    command: str, records: int, recorder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool, submitted, checkout = (tmp_path / name for name in ("spool", "submitted from", "a checkout"))
    spool.mkdir()
    submitted.mkdir()
    checkout.symlink_to(ROOT)
    (tmp_path / "pretrain").symlink_to(ROOT / "launch" / "pretrain.sh")
    copy = shutil.copy(ROOT / "launch" / "pretrain.sh", spool / "slurm_script")
    overrides = ["seed=1", "stages.a.duration=2 epochs"]
    original = command.format(root=checkout, checkout=checkout.name, tmp=tmp_path)
    record = f"JobId=7 JobName=x\n   Command={original} configs/quickstart.yaml {' '.join(overrides)}\n   WorkDir=/\n"
    (recorder / "scontrol").write_text(f"#!/bin/bash\n[ \"$*\" = 'show job 7' ] && cat <<'E'\n{record * records}E\n")
    (recorder / "scontrol").chmod(0o755)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_SUBMIT_DIR", str(submitted))
    done = run(copy, "configs/quickstart.yaml", *overrides, cwd=tmp_path, first_on_path=recorder)
    assert done.stdout.splitlines() == ["run", str(ROOT / "configs/quickstart.yaml"), *overrides], done.stderr


def test_a_copy_without_its_checkout_is_one_sentence(recorder: Path, tmp_path: Path) -> None:
    copy = shutil.copy(ROOT / "launch" / "pretrain.sh", tmp_path / "pretrain.sh")
    done = run(copy, "configs/quickstart.yaml", cwd=tmp_path, first_on_path=recorder)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "setup.sh is not beside" in done.stderr
