"""Kinds of labels: one file per kind, found by the kind's name. It defines one `Target`, and imports no torch.

A task names the kinds that it learns from, a data set their members and settings (`datasets.NAME.targets.KIND`).
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping, Sequence

from pipeline.config.targets import TargetConfig
from pipeline.errors import ConfigError
from pipeline.targets.base import ClassMap, Target

Members = Mapping[str, tuple[str, ...]]  # the extensions that each kind reads


def target_kinds() -> list[str]:
    """The names of all kinds, sorted."""
    names = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name for name in names if name != "base" and not name.startswith("_"))


def target_kind(name: str) -> type[Target]:
    """The `Target` class defined in the file of a kind. Raises ConfigError, listing all kinds, for an unknown name."""
    kinds = target_kinds()
    if name not in kinds:
        raise ConfigError(f"found {name!r}, which is not a kind of target; expected one of {', '.join(kinds)}")
    module = importlib.import_module(f"{__name__}.{name}")
    own = [value for value in vars(module).values() if isinstance(value, type) and issubclass(value, Target)]
    targets = [value for value in own if value.__module__ == module.__name__]
    assert len(targets) == 1, f"{module.__name__} defines {len(targets)} subclasses of Target, expected one"
    return targets[0]


def tool_targets(
    members: Members,
    classes: Mapping[str, Sequence[str]] | None = None,
    configs: Mapping[str, TargetConfig] | None = None,
) -> list[Target]:
    """The targets of a data set for the tools: its classes keep their own numbers."""
    found = []
    for kind, extensions in members.items():
        chosen, names = target_kind(kind), (classes or {}).get(kind)
        config = (configs or {}).get(kind) or chosen.config()
        found.append(chosen.build(extensions, config, None if names is None else ClassMap.same(tuple(names))))
    return found


def default_members(extensions: set[str]) -> dict[str, tuple[str, ...]]:
    """The kinds implied by extensions: those whose default members are all among them."""
    told = ((kind, target.default_members) for kind, target in _all_kinds() if target.recognised_by_name)
    return {kind: members for kind, members in told if extensions.issuperset(members)}


def _all_kinds() -> Iterator[tuple[str, type[Target]]]:
    return ((kind, target_kind(kind)) for kind in target_kinds())
