"""Classes merged into one: a setting shared by the kinds of labels with classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Self

from pydantic import Field as Setting
from pydantic import model_validator

from pipeline.config.class_names import normalise_class_name
from pipeline.config.fields import allowed
from pipeline.config.targets import TargetConfig
from pipeline.errors import ConfigError


class GroupsConfig(TargetConfig):
    groups: dict[str, Annotated[list[str], Setting(min_length=1)]] | None = Setting(
        default=None,
        min_length=1,
        description="classes to merge, by the name of the merged class; classes without a group are ignored",
    )

    @model_validator(mode="after")
    def one_group_per_class(self) -> Self:
        seen: dict[str, str] = {}
        for group, names in (self.groups or {}).items():
            for name in map(normalise_class_name, names):
                if name in seen:
                    raise ValueError(
                        f"groups: class {name!r} is in {seen[name]!r} and in {group!r}; take it out of one"
                    )
                seen[name] = group
        return self

    def meanings(self, names: Sequence[str]) -> list[str | None]:
        """The group of each class. Raises ConfigError for groups of classes that the data set does not have."""
        if self.groups is None:
            return list(names)
        group_of = {normalise_class_name(name): group for group, members in self.groups.items() for name in members}
        for name in group_of:
            if name not in names:
                raise ConfigError(f"groups.{group_of[name]}: {name!r} is not a class; {allowed(name, names[:100])}")
        return [group_of.get(name) for name in names]
