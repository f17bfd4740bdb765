"""Validation of the head of a task with dense outputs, one for every patch."""

from __future__ import annotations

from pipeline.models.heads import head_kind, head_kinds
from pipeline.models.heads._boxes import BoxKind
from pipeline.models.heads._layers import PatchKind


def map_head(name: str, *, regresses: bool = False) -> str:
    """Return the name; raises ValueError, as validators do, for an unsuitable head.

    `regresses` requires a head whose outputs can be quantities.
    """
    found = {kind: head_kind(kind) for kind in head_kinds()}
    maps = {kind: head for kind, head in found.items() if isinstance(head, PatchKind) and not isinstance(head, BoxKind)}
    fitting = [kind for kind, head in maps.items() if head.regresses or not regresses]
    if name not in fitting:
        raise ValueError(f"a head with outputs for every patch, one of {', '.join(fitting)}")
    return name
