"""Heads by kind: each kind is a package here, imported by name when a spec needs it. Imports no torch.

Its `__init__.py` defines `HEAD`, a `HeadKind` (`base.py`), which plans and checks use without torch; its `module.py`
defines the `Head` (`head.py`). Tasks name the kind in a `HeadSpec`.
"""

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
    """Returns the description of a kind of head. Raises `ModelError`, listing the valid names, for unknown kinds."""
    if name not in head_kinds():
        near = difflib.get_close_matches(name, head_kinds(), n=1)
        hint = f"did you mean {near[0]!r}? Allowed: " if near else "allowed: "
        raise ModelError(f"heads: {name!r} is not a kind of head; {hint}{', '.join(head_kinds())}")
    kind: HeadKind = importlib.import_module(f"{__name__}.{name}").HEAD
    return kind


@cache
def head_kinds() -> list[str]:
    """Names of all kinds."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.ispkg)
