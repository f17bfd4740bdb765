"""The installed package: the command, its version, the pinned versions."""

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


DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text()
STEPS = [line.split() for line in DOCKERFILE.splitlines() if line]


def test_image_copies_files_that_the_build_may_read_and_runs_without_root() -> None:
    let_through = build_context()
    sources = [
        name
        for step, *names in STEPS
        if step == "COPY" and not names[0].startswith("--from=")
        for name in names[:-1]
        if name != "."
    ]
    assert sources
    for name in sources:
        assert (ROOT / name).is_file()
        assert any(name == kept or (kept.endswith("/") and name.startswith(kept)) for kept in let_through)
    users = [names[0] for step, *names in STEPS if step == "USER"]
    assert int(users[-1]) > 0, "Kubernetes' runAsNonRoot takes a number only"


def test_build_reads_what_the_image_needs_and_nothing_else() -> None:
    """Data, runs, environments and history are gigabytes, and may be secret."""
    packages = {"pipeline/", "configs/", "launch/"}
    assert build_context() == packages | {"pyproject.toml", "constraints.txt", "LICENSE", PROJECT["readme"]}


def build_context() -> set[str]:
    ignore = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert ignore[0] == "*"
    return {line.removeprefix("!") for line in ignore if line.startswith("!")}


def test_layer_of_the_dependencies_depends_on_nothing_else() -> None:
    """A changed line of code, or of the checkers' settings, must not build gigabytes again."""
    image = STEPS[max(i for i, words in enumerate(STEPS) if words[0] == "FROM") :]
    copies = [names for step, *names in image if step == "COPY"]
    install = next(i for i, words in enumerate(image) if "--requirement" in words)
    before = [names for step, *names in image[:install] if step == "COPY"]
    assert before == [["--from=requirements", "/requirements.txt", "/opt/"], ["constraints.txt", "./"]]
    assert copies[len(before) :] == [[".", "."]]


def test_image_installs_what_the_project_asks_for(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    found = re.search(r"python3 -c '(.*?)' > /requirements\.txt", DOCKERFILE.replace("\\\n", ""), re.S)
    assert found
    command = [sys.executable, "-c", found[1]]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    wanted = {*PROJECT["dependencies"], *EXTRAS["gpu"], *EXTRAS["s3"]}
    assert wanted < set(done.stdout.splitlines())
    assert any(line.startswith("setuptools") for line in done.stdout.splitlines()), "installs without a network"
