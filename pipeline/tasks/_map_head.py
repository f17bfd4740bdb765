"""Which heads a task with outputs for every patch can have."""

from __future__ import annotations

from pipeline.models.heads import head_kind, head_kinds
from pipeline.models.heads._layers import PatchKind


def map_head(name: str, *, regresses: bool = False) -> str:
    """The name; ValueError, as of validators, for another head. `regresses`: outputs are to be quantities."""
    found = {kind: head_kind(kind) for kind in head_kinds()}
    fitting = [
        kind for kind, head in found.items() if isinstance(head, PatchKind) and (head.regresses or not regresses)
    ]
    if name not in fitting:
        raise ValueError(f"a head with outputs for every patch, one of {', '.join(fitting)}")
    return name
