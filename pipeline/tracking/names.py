"""Names that MLflow takes for metrics, parameters and tags: those of classes and data sets are the user's to choose."""

from __future__ import annotations

import hashlib
import posixpath
import re

TAG_PREFIX = "minivit.name/"  # of the tag that holds what a changed name stands for
MAX_LENGTH = 250 - len(TAG_PREFIX)
FORBIDDEN = re.compile(r"[^/\w.\- :]")
HASH_DIGITS = 8


def mlflow_name(name: str) -> str:
    """The name itself where MLflow takes it; else one like it, which ends in a hash so that no two become one."""
    if not FORBIDDEN.search(name) and len(name) <= MAX_LENGTH and _is_plain_path(name):
        return name
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:HASH_DIGITS]
    parts = [part for part in FORBIDDEN.sub("_", name).split("/") if part not in ("", ".", "..")]
    like = "/".join(parts).lstrip(".")[: MAX_LENGTH - HASH_DIGITS - 1]
    return f"{like}-{digest}"


def _is_plain_path(name: str) -> bool:
    """Whether a name that is taken for a path stays as it is, as MLflow asks."""
    return name not in ("", ".") and posixpath.normpath(name) == name and not name.startswith(("..", "/"))
