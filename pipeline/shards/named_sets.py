"""The input of a tool: shards named by a pattern, or the data sets of a pipeline, with the keys that it reads."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.config.data import DatasetConfig
from pipeline.config.fields import allowed
from pipeline.config.load import load_config
from pipeline.config.targets import every_kind
from pipeline.errors import ConfigError
from pipeline.shards.index import DatasetIndex
from pipeline.shards.index_file import load_index
from pipeline.shards.members import Keys
from pipeline.targets import target_kind, tool_targets
from pipeline.targets.base import Target

CONFIG = re.compile(r"(.+\.ya?ml)(?::([^:/]+))?")


@dataclass(frozen=True)
class NamedSet:
    """Some shards, and what to read from them; the index decides whatever `config` leaves open."""

    name: str  # for messages
    config: DatasetConfig

    @property
    def pattern(self) -> str:
        return self.config.shards

    @property
    def members(self) -> dict[str, tuple[str, ...]]:
        """The members of the targets that the config names."""
        return {kind: found for kind, one in self.config.targets.given().items() if (found := one.members)}

    def keys(self, index: DatasetIndex) -> Keys:
        """The members that are images."""
        return index.keys.override(self.config.image_key)

    def targets(self, index: DatasetIndex) -> list[Target]:
        """The targets to read: those of the index, and those that the config names."""
        members = {**index.members, **self.members}
        return tool_targets(members, self.classes(index, members), self.config.targets.given())

    def classes(self, index: DatasetIndex, kinds: Iterable[str]) -> dict[str, list[str]]:
        """The class names of each kind, if the config or the index has them."""
        found = {kind: self.config.classes_of(kind) or index.classes.get(kind) for kind in kinds}
        return {kind: names for kind, names in found.items() if names}

    def open(self) -> DatasetIndex:
        """Loads its index and compares it with the folder. Raises DataError."""
        return load_index(self.config.shards)


def named_sets(text: str, image_key: str | None = None, targets: Mapping[str, str] | None = None) -> list[NamedSet]:
    """A pattern, the data set of `CONFIG.yaml:NAME`, or all of `CONFIG.yaml`; members given here take precedence.

    Raises ConfigError for a config that cannot be read or a name that is not in it.
    """
    match = CONFIG.fullmatch(text)
    if match is None:
        return [NamedSet(text, _with(DatasetConfig(shards=text), image_key, targets))]
    path, name = match.groups()
    datasets = load_config(path).datasets
    if name is not None and name not in datasets:
        raise ConfigError(f"{path}: found no data set {name!r}; {allowed(name, list(datasets))}")
    return [NamedSet(one, _with(found, image_key, targets)) for one, found in datasets.items() if name in (None, one)]


def named_set(text: str, image_key: str | None = None, targets: Mapping[str, str] | None = None) -> NamedSet:
    """Like `named_sets`, for a single one. Raises ConfigError if the config has several and none is named."""
    sets = named_sets(text, image_key, targets)
    if len(sets) != 1:
        raise ConfigError(
            f"{text}: found the data sets {', '.join(one.name for one in sets)}; choose one with {text}:NAME"
        )
    return sets[0]


def _with(config: DatasetConfig, image_key: str | None, targets: Mapping[str, str] | None) -> DatasetConfig:
    """The config with the members given on the command line."""
    changes: dict[str, Any] = {} if image_key is None else {"image_key": image_key}
    if targets:
        given = {kind: config.targets.of(kind) or target_kind(kind).config() for kind in targets}
        named = {kind: one.model_copy(update={"member": targets[kind]}) for kind, one in given.items()}
        changes["targets"] = every_kind()(**{**config.targets.given(), **named})
    return config.model_copy(update=changes)
