from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

from pipeline.tracking.origin import git_tags, origin_tags


def git(folder: Path, *arguments: str) -> str:
    settings = ["-c", "user.name=ada", "-c", "user.email=ada@example.org"]
    command = ["git", "-C", str(folder), *settings, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_the_commit_and_whether_it_is_all(tmp_path: Path) -> None:
    assert git_tags(tmp_path / "none") == {}
    folder = tmp_path / "code"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "trunk")
    git(folder, "remote", "add", "origin", "https://me:hunter2@git.example.org/code")
    (folder / "a.py").write_text("a = 1\n")
    git(folder, "add", "a.py")
    git(folder, "commit", "-qm", "first")
    commit = git(folder, "rev-parse", "HEAD")
    expected = {
        "mlflow.source.git.commit": commit,
        "mlflow.source.git.branch": "trunk",
        "minivit.git.dirty": "false",
    }
    assert git_tags(tmp_path / "none", folder) == expected
    (folder / "a.py").write_text("a = 2\n")
    git(folder, "checkout", "-q", "--detach")
    assert git_tags(folder) == {"mlflow.source.git.commit": commit, "minivit.git.dirty": "true"}


def test_every_run_tells_who_and_where_and_with_which_config(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("name: a\n")
    (tmp_path / "b.yaml").write_text("name: b\n")
    found, other = origin_tags(tmp_path / "a.yaml"), origin_tags(tmp_path / "b.yaml")
    assert {"mlflow.user", "mlflow.source.name", "minivit.host", "minivit.version"} <= set(found)
    assert {name for name in found if found[name] != other[name]} == {"minivit.config_sha256"}
    assert found["minivit.config_sha256"] == hashlib.sha256(b"name: a\n").hexdigest()
