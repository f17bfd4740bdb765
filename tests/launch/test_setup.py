"""The functions of setup.sh in a scratch copy of the repository's root, without pip's installation."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Where the tests need a tool but no Python.
TOOLS = ("basename", "bash", "dirname", "readlink")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository's root with what setup.sh reads. Its path has a space, as a user's may."""
    root = tmp_path / "a checkout"
    (root / "launch").mkdir(parents=True)
    shutil.copy(ROOT / "launch" / "setup.sh", root / "launch")
    (root / "pyproject.toml").write_text("[project]\n")
    (root / "constraints.txt").write_text("torch==2.14.1\n")
    return root


@pytest.fixture
def venv(checkout: Path) -> Path:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", checkout / ".venv"], check=True)
    return checkout / ".venv"


def call(checkout: Path, script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs `script` with setup.sh sourced, outside of any Python environment."""
    inherited = {
        k: v for k, v in os.environ.items() if k not in {"VIRTUAL_ENV", "CONDA_PREFIX", "MINIVIT_IN_CONTAINER"}
    }
    return subprocess.run(
        ["bash", "-c", f"set -euo pipefail; source '{checkout}/launch/setup.sh'; {script}"],
        cwd="/",
        env=inherited | environment,
        capture_output=True,
        text=True,
    )


def stamp(checkout: Path, level: str) -> Path:
    path = checkout / ".venv" / "minivit.stamp"
    path.write_text(f"{call(checkout, 'fingerprint').stdout.strip()} {level} {checkout}/.venv\n")
    return path


@pytest.mark.parametrize(
    ("level", "wanted", "installed"),
    [
        ("base", "base", True),
        ("base", "test", False),
        ("test", "base", True),
        ("test", "test", True),
        ("test", "dev", False),
        ("dev", "base", True),
        ("dev", "test", True),
        ("dev", "dev", True),
    ],
)
def test_each_level_holds_those_before_it(checkout: Path, venv: Path, level: str, wanted: str, installed: bool) -> None:
    stamp(checkout, level)
    assert (call(checkout, f"is_installed {wanted}").returncode == 0) == installed


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_changed_requirements_call_for_another_installation(checkout: Path, venv: Path, name: str) -> None:
    stamp(checkout, "base")
    assert call(checkout, "is_installed base").returncode == 0
    (checkout / name).write_text("changed\n")
    assert call(checkout, "is_installed base").returncode != 0
    assert call(checkout, "must_start_afresh").returncode != 0, "a change is installed in place"


def test_unstamped_environment_is_not_taken_for_installed(checkout: Path, venv: Path) -> None:
    assert call(checkout, "is_installed base").returncode != 0
    assert call(checkout, "must_start_afresh").returncode != 0, "an environment of the user's own is not deleted"


@pytest.mark.parametrize("content", ["", "0123 base"])
def test_torn_stamp_is_no_stamp(checkout: Path, venv: Path, content: str) -> None:
    (venv / "minivit.stamp").write_text(content)
    assert call(checkout, "is_installed base").returncode != 0


def test_interrupted_installation_starts_afresh(checkout: Path, venv: Path) -> None:
    (venv / "minivit.installing").touch()
    assert call(checkout, "must_start_afresh").returncode == 0


def test_moved_checkout_starts_afresh(checkout: Path, venv: Path) -> None:
    stamp(checkout, "base")
    moved = checkout.rename(checkout.with_name("moved"))
    assert call(moved, "is_installed base").returncode != 0
    assert call(moved, "must_start_afresh").returncode == 0


def test_vanished_interpreter_starts_afresh(checkout: Path, venv: Path) -> None:
    stamp(checkout, "base")
    for name in (venv / "bin").glob("python*"):
        name.unlink()
    assert call(checkout, "is_installed base").returncode != 0
    assert call(checkout, "must_start_afresh").returncode == 0


def test_failed_installation_leaves_the_marker_and_no_stamp(checkout: Path, venv: Path) -> None:
    stamp(checkout, "base")
    (checkout / "constraints.txt").write_text("changed\n")
    done = call(checkout, "ensure_environment base")  # this environment has no pip
    assert done.returncode == 1
    assert "the installation failed" in done.stderr
    assert (venv / "minivit.installing").exists()
    assert not (venv / "minivit.stamp").exists()


def test_installed_environment_comes_first_on_path(checkout: Path, venv: Path) -> None:
    stamp(checkout, "base")
    done = call(checkout, 'ensure_environment base; command -v python; echo "$VIRTUAL_ENV"')
    assert done.stdout.splitlines() == [f"{venv}/bin/python", str(venv)]


def test_active_environment_with_the_package_is_used_as_it_is(checkout: Path) -> None:
    active = Path(sys.executable).parent
    path = f"{active}:{os.environ['PATH']}"
    done = call(checkout, "ensure_environment test; command -v python", VIRTUAL_ENV=str(active.parent), PATH=path)
    assert done.stdout.strip() == str(active / "python")
    assert not (checkout / ".venv").exists()


def test_active_environment_without_the_package_is_left_alone(checkout: Path, venv: Path) -> None:
    path = f"{venv}/bin:{os.environ['PATH']}"
    done = call(checkout, "active_environment_has_package", VIRTUAL_ENV="/some/other", PATH=path)
    assert done.returncode != 0


def test_checkout_in_the_working_directory_is_no_installed_package(venv: Path) -> None:
    # cwd holds a package of the right name, as it does for whoever stands in the repository
    script = f"cd '{ROOT}'; has_distribution '{venv}/bin/python' minivit-pipeline"
    assert call(ROOT, script).returncode != 0


def bare_path(folder: Path, *tools: str) -> str:
    """A PATH with only these tools."""
    folder.mkdir()
    for tool in (*TOOLS, *tools):
        (folder / tool).symlink_to(shutil.which(tool) or pytest.fail(f"{tool} is not on PATH"))
    return str(folder)


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({}, "found no Python 3.11 or newer on PATH"),
        ({"PYTHON": "/no/such/python"}, "PYTHON=/no/such/python is not Python 3.11 or newer"),
    ],
)
def test_missing_python_is_one_sentence(
    checkout: Path, tmp_path: Path, environment: dict[str, str], sentence: str
) -> None:
    done = call(checkout, "install base", PATH=bare_path(tmp_path / "bin", "g++"), **environment)
    assert done.returncode == 1
    assert sentence in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (checkout / ".venv").exists()


def test_missing_compiler_is_one_sentence(checkout: Path, tmp_path: Path) -> None:
    done = call(checkout, "install base", PATH=bare_path(tmp_path / "bin"))
    assert done.returncode == 1
    assert "apt-get install g++" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_modules_of_the_working_folder_are_not_imported(checkout: Path, tmp_path: Path) -> None:
    for name in ("ensurepip", "logging", "queue", "subprocess"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a module of the user')\n")
    done = call(checkout, f"cd '{tmp_path}'; make_venv '{sys.executable}'")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (checkout / ".venv" / "bin" / "pip").exists()


@pytest.mark.parametrize(("before", "after"), [("", ""), (":lib", "lib"), ("a b::/other:", "a b:/other"), (":", "")])
def test_empty_entries_of_pythonpath_are_dropped(checkout: Path, before: str, after: str) -> None:
    assert call(checkout, 'printf "%s" "$PYTHONPATH"', PYTHONPATH=before).stdout == after


def test_old_python_is_passed_over(checkout: Path, tmp_path: Path) -> None:
    path = bare_path(tmp_path / "bin")
    old = tmp_path / "bin" / "python3"
    old.write_text("#!/bin/bash\nexit 1\n")  # what an old interpreter answers to the question for its version
    old.chmod(0o755)
    (tmp_path / "bin" / "python3.11").symlink_to(sys.executable)
    assert call(checkout, "find_python", PATH=path).stdout.strip() == f"{path}/python3.11"
