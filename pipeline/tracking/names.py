"""Names that MLflow accepts for metrics, parameters and tags; users' names of classes and data sets may be anything."""

from __future__ import annotations

import hashlib
import posixpath
import re

TAG_PREFIX = "minivit.name/"  # of the tag with the original of a changed name
MAX_LENGTH = 250 - len(TAG_PREFIX)
FORBIDDEN = re.compile(r"[^/\w.\- :]")
HASH_DIGITS = 8


def mlflow_name(name: str) -> str:
    """The name itself if MLflow accepts it, otherwise a similar one that ends in a hash to stay unique."""
    if not FORBIDDEN.search(name) and len(name) <= MAX_LENGTH and _is_plain_path(name):
        return name
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:HASH_DIGITS]
    parts = [part for part in FORBIDDEN.sub("_", name).split("/") if part not in ("", ".", "..")]
    like = "/".join(parts).lstrip(".")[: MAX_LENGTH - HASH_DIGITS - 1]
    return f"{like}-{digest}"


def _is_plain_path(name: str) -> bool:
    """Whether a name is a normalised relative path, as MLflow requires."""
    return name not in ("", ".") and posixpath.normpath(name) == name and not name.startswith(("..", "/"))
