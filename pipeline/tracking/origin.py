"""Tags that describe a run's origin, under MLflow's own names where they exist."""

from __future__ import annotations

import functools
import getpass
import os
import socket
import subprocess
from pathlib import Path

from pipeline import __version__
from pipeline.files import hash_file

GIT_TIMEOUT_S = 5
COMMIT, DIRTY, BRANCH = "mlflow.source.git.commit", "minivit.git.dirty", "mlflow.source.git.branch"
HOST, VERSION, CONFIG_DIGEST = "minivit.host", "minivit.version", "minivit.config_sha256"


def origin_tags(config: Path) -> dict[str, str]:
    """This process's code, user and host, and the digest of its config, a file with all settings."""
    return {**_process_tags(), CONFIG_DIGEST: hash_file(config)}


@functools.cache
def _process_tags() -> dict[str, str]:
    """No remote URL is among them, as it may hold a token."""
    found = {"mlflow.source.name": "minivit run", "mlflow.source.type": "LOCAL", VERSION: __version__}
    found[HOST] = socket.gethostname()
    try:
        found["mlflow.user"] = getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        found["mlflow.user"] = str(os.getuid())
    return found | git_tags(Path(__file__).parent, Path.cwd())


def git_tags(*folders: Path) -> dict[str, str]:
    """Commit, branch and whether tracked files are changed, of the first folder under git; else empty."""
    for folder in folders:
        if commit := _git(folder, "rev-parse", "HEAD"):
            found = {COMMIT: commit, DIRTY: str(bool(_git(folder, "status", "--porcelain", "-uno"))).lower()}
            branch = _git(folder, "rev-parse", "--abbrev-ref", "HEAD")
            return found | ({BRANCH: branch} if branch and branch != "HEAD" else {})
    return {}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=GIT_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
