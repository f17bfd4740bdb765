"""Kinds of labels: one file each, found by the kind's name."""

from __future__ import annotations

import importlib
import pkgutil

from pipeline.errors import ConfigError
from pipeline.targets.base import Target


def target_kinds() -> list[str]:
    """The names of all kinds, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "base")


def target_kind(name: str) -> type[Target]:
    """The one `Target` that the file of a kind defines. Raises ConfigError, which lists the kinds, for another name."""
    kinds = target_kinds()
    if name not in kinds:
        raise ConfigError(f"found {name!r}, which is no kind of target; expected one of {', '.join(kinds)}")
    module = importlib.import_module(f"{__name__}.{name}")
    own = [value for value in vars(module).values() if isinstance(value, type) and issubclass(value, Target)]
    (target,) = (value for value in own if value.__module__ == module.__name__)
    return target
