"""Checks which paths of a config pods can reach: relative paths start at the volume that all pods share."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.credentials import secrets_of
from pipeline.errors import ConfigError
from pipeline.shards.urls import is_local

VOLUME = "/workspace"  # where the volume is mounted, and the working folder of the image
SQLITE = "sqlite:///"


def path_faults(raw: Mapping[str, Any]) -> Iterator[str]:
    """One sentence for each path of a config, as written, that lies outside the volume.

    Checks only what pods must share. Skips paths with variables, whose values may differ in a pod.
    """
    for where, path in _shared_paths(raw):
        if "$" in path or not is_local(path):
            continue
        inside = posixpath.normpath(posixpath.join(VOLUME, path))
        if path.startswith("~") or not f"{inside}/".startswith(f"{VOLUME}/"):
            yield (
                f"{where}: found {path!r}, which is not on the volume that the pods share; use a URL, a relative "
                f"path, or a path below {VOLUME}, where the volume is mounted"
            )


def check_shareable(raw: Mapping[str, Any], config: str) -> None:
    """Raises ConfigError if pods cannot reach a path of the file `config`, or if its manifest would hold a password."""
    if faults := list(path_faults(raw)):
        raise ConfigError("\n".join(f"{config}: {fault}" for fault in faults))
    if password_in(raw):
        raise ConfigError(
            f"{config}: tracking.uri: contains a password or token, which the manifest would expose; replace it with a "
            "variable, such as $MLFLOW_PASSWORD, and set that with --secret"
        )


def expected_data(raw: Mapping[str, Any]) -> list[str]:
    """The shards that must be on the volume before the run, as `path (setting)`; excludes those the run makes."""
    return [
        f"{dataset['shards']} (datasets.{name}.shards)"
        for name, dataset in (raw.get("datasets") or {}).items()
        if not dataset.get("make") and is_local(dataset["shards"])
    ]


def password_in(raw: Mapping[str, Any]) -> bool:
    """Whether the tracking URI contains a literal password or token instead of a variable."""
    uri = (raw.get("tracking") or {}).get("uri") or ""
    return any("$" not in secret for secret in secrets_of(uri))


def _shared_paths(raw: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if "runs_dir" in raw:
        yield "runs_dir", raw["runs_dir"]
    uri = (raw.get("tracking") or {}).get("uri") or ""
    if uri.startswith(SQLITE):
        yield "tracking.uri", uri.removeprefix(SQLITE)
    for name, dataset in (raw.get("datasets") or {}).items():
        yield f"datasets.{name}.shards", dataset["shards"]
    for name, stage in raw["stages"].items():
        if storage := (stage.get("checkpoint") or {}).get("storage"):
            yield f"stages.{name}.checkpoint.storage", storage
        if (source := stage.get("init_from")) and source.startswith((".", "/", "~")):
            yield f"stages.{name}.init_from", source
