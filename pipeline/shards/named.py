"""What a tool is pointed at: shards by a pattern, or the data sets of a pipeline, with the keys the pipeline reads."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pipeline.config.data import WHITE, Color
from pipeline.config.fields import allowed
from pipeline.config.load import load_config
from pipeline.errors import ConfigError
from pipeline.shards.index import DatasetIndex, load_index
from pipeline.shards.members import Keys

CONFIG = re.compile(r"(.+\.ya?ml)(?::([^:/]+))?")


@dataclass(frozen=True)
class NamedSet:
    """Some shards, and what of them is read; None where the index decides."""

    name: str  # for messages
    pattern: str
    image_key: str | None = None
    label_key: str | None = None
    classes: list[str] | None = None
    background: Color = WHITE  # of transparent pixels

    def keys(self, index: DatasetIndex) -> Keys:
        """The members that are image and label."""
        return index.keys.override(self.image_key, self.label_key)

    def open(self) -> tuple[DatasetIndex, Keys]:
        """Its index, compared with the folder, and the members that are image and label. Raises DataError."""
        index = load_index(self.pattern)
        return index, self.keys(index)


def named_sets(text: str, image_key: str | None = None, label_key: str | None = None) -> list[NamedSet]:
    """A pattern, the data set of `CONFIG.yaml:NAME`, or all of `CONFIG.yaml`; keys given here come first.

    Raises ConfigError for a config that cannot be read or a name that is not in it.
    """
    match = CONFIG.fullmatch(text)
    if match is None:
        return [NamedSet(text, text, image_key, label_key)]
    path, name = match.groups()
    datasets = load_config(path).datasets
    if name is not None and name not in datasets:
        raise ConfigError(f"{path}: has no data set {name!r}; {allowed(name, list(datasets))}")
    return [
        NamedSet(
            one,
            found.shards,
            image_key or found.image_key,
            label_key or found.label_key,
            found.classes,
            found.background,
        )
        for one, found in datasets.items()
        if name in (None, one)
    ]


def named_set(text: str, image_key: str | None = None, label_key: str | None = None) -> NamedSet:
    """As `named_sets`, of one. Raises ConfigError where the config has several and none is named."""
    sets = named_sets(text, image_key, label_key)
    if len(sets) != 1:
        raise ConfigError(f"{text}: has the data sets {', '.join(one.name for one in sets)}; name one: {text}:NAME")
    return sets[0]
