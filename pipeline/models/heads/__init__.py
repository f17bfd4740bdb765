"""Heads by kind: each is a package here whose name is the kind, found when a spec names it. Needs no torch."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from functools import cache
from typing import TYPE_CHECKING

from pipeline.errors import ModelError

if TYPE_CHECKING:
    from pipeline.models.heads.base import HeadKind


def head_kind(name: str) -> HeadKind:
    """What is known of the heads of a kind; `ModelError` with the right names otherwise."""
    if name not in head_kinds():
        near = difflib.get_close_matches(name, head_kinds(), n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ModelError(f"heads: {name!r} is not a kind of head; {hint}Known are {', '.join(head_kinds())}")
    kind: HeadKind = importlib.import_module(f"{__name__}.{name}").HEAD
    return kind


@cache
def head_kinds() -> list[str]:
    """The kinds that there are."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.ispkg)
