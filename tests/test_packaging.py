"""What is installed: the command, its version, the pins."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import pipeline

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def pins() -> dict[str, Version]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    return {canonicalize_name(name): Version(version) for name, version in (line.split("==") for line in lines)}


def test_constraints_hold_versions_and_nothing_of_this_machine() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert lines[0].startswith("#")
    assert [line for line in lines[1:] if not re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][0-9a-z.]*", line)] == []


@pytest.mark.parametrize("group", ["dependencies", *EXTRAS])
def test_pins_lie_in_the_tested_ranges(group: str) -> None:
    pinned = pins()
    for text in PROJECT["dependencies"] if group == "dependencies" else EXTRAS[group]:
        requirement = Requirement(text)
        if requirement.name == PROJECT["name"]:
            assert requirement.extras <= set(EXTRAS)
        else:
            name = canonicalize_name(requirement.name)
            assert name in pinned, f"{text} has no line in constraints.txt"
            assert pinned[name] in requirement.specifier


def test_console_script_answers_with_the_version() -> None:
    (script,) = entry_points(group="console_scripts", name="minivit")
    assert callable(script.load())
    command = Path(sys.executable).with_name("minivit")
    done = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    assert pipeline.__version__ in done.stdout


def test_package_is_typed_and_licensed() -> None:
    assert (ROOT / "pipeline" / "py.typed").is_file()
    assert "Apache License" in (ROOT / PROJECT["license-files"][0]).read_text()


def test_wheel_holds_every_file_of_the_package() -> None:
    """A template that the package reads at run time must not be missing from an installation that is not editable."""
    tracked = subprocess.run(["git", "ls-files", "pipeline"], cwd=ROOT, capture_output=True, text=True, check=True)
    suffixes = {Path(name).suffix for name in tracked.stdout.split()} - {
        ".py",
        ".md",
        ".png",
    }  # pictures belong to the notes
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert suffixes <= {Path(pattern).suffix for pattern in setuptools["package-data"]["pipeline"]}


def test_image_copies_files_that_the_build_may_read_and_runs_without_root() -> None:
    steps = [line.split() for line in (ROOT / "docker" / "Dockerfile").read_text().splitlines() if line]
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    let_through = {line.removeprefix("!") for line in ignore if line.startswith("!")}
    sources = [name for step, *names in steps if step == "COPY" for name in names[:-1] if name != "."]
    assert sources
    for name in sources:
        assert (ROOT / name).is_file()
        assert any(name == kept or (kept.endswith("/") and name.startswith(kept)) for kept in let_through)
    users = [names[0] for step, *names in steps if step == "USER"]
    assert int(users[-1]) > 0, "Kubernetes' runAsNonRoot takes a number only"
