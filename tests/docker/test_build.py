from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def build(tools: Path, *names: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Calls the script where only these builders are installed, each of which prints its name and arguments."""
    tools.mkdir()
    for name in names:
        (tools / name).write_text('#!/bin/sh\necho "${0##*/} $*"; test -f docker/Dockerfile\n')
        (tools / name).chmod(0o755)
    for name in ("dirname", "readlink"):
        (tools / name).symlink_to(f"/usr/bin/{name}")
    environment = {**os.environ, "PATH": str(tools), "BASE": "", **variables}
    command = ["/bin/bash", ROOT / "docker" / "build.sh", "minivit:cpu", "--pull=never"]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("tools", "command"),
    [
        (["docker", "podman"], "docker buildx build"),
        (["podman", "buildah"], "podman build"),
        (["buildah"], "buildah build --layers"),
    ],
)
def test_image_is_built_with_what_is_installed(tools: list[str], command: str, tmp_path: Path) -> None:
    done = build(tmp_path / "bin", *tools)
    assert done.stdout == f"{command} --file docker/Dockerfile --tag minivit:cpu --pull=never .\n"


def test_docker_without_buildkit_is_passed_over(tmp_path: Path) -> None:
    """Its old builder knows no secrets."""
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "docker").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "old" / "docker").chmod(0o755)
    done = build(tmp_path / "bin", "podman", PATH=f"{tmp_path / 'old'}:{tmp_path / 'bin'}")
    assert done.stdout.startswith("podman build ")


def test_base_is_passed_on(tmp_path: Path) -> None:
    done = build(tmp_path / "bin", "docker", BASE="ubuntu:24.04")
    assert "--tag minivit:cpu --build-arg BASE=ubuntu:24.04 --pull=never" in done.stdout


def test_no_builder(tmp_path: Path) -> None:
    done = build(tmp_path / "bin")
    assert done.returncode == 1
    assert "found no Docker with buildx, Podman or buildah" in done.stderr
