"""The settings that determine a folder's shards, stored with them so that a second run recognises its own work."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import DataError
from pipeline.shards import store

SOURCE = {"num_files", "listing_sha256"}  # entries that describe the source's files, not the settings


def agree_on_plan(out: Path, prefix: str, plan: Mapping[str, Any], elsewhere: str = "--out or --prefix") -> bool:
    """Records the plan of `PREFIX-*.tar`, or compares it with the recorded one; returns whether no shards exist yet.

    Raises DataError if existing shards follow another plan; `elsewhere` names the options that avoid that.
    """
    path = out / f".{prefix}.plan.json"
    if not any(out.glob(f"{prefix}-*.tar")):
        store.write_bytes(str(path), json.dumps(dict(plan)).encode())
        return True
    if not path.is_file():
        raise DataError(f"{out}: found {prefix!r} shards from another source; choose another {elsewhere}")
    earlier = json.loads(path.read_bytes())
    changed = [name for name, value in plan.items() if earlier.get(name) != value]
    settings = [name for name in changed if name not in SOURCE]
    if changed:
        why = (
            f"were made with another {' and '.join(settings)}"
            if settings
            else "are older than their source: files were added, removed or changed since"
        )
        raise DataError(
            f"{out}: its {prefix!r} shards {why}; choose another {elsewhere}, or delete those shards and "
            f"this plan and run the command again: {path}"
        )
    return False
