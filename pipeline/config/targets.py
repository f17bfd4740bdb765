"""The labels of a data set, by kind; each kind's own settings are defined in its file in `pipeline.targets`."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Annotated, Any, Self

from pydantic import (
    Field,
    PlainValidator,
    SerializeAsAny,
    ValidationInfo,
    create_model,
    model_validator,
)

from pipeline.config.section import Section, SectionType

PACKAGE = "pipeline.targets"  # a higher layer, so its kinds are imported by name when a pipeline file asks for them


def is_extension(text: str) -> bool:
    """Whether a string is a valid extension of a sample's member."""
    return "/" not in text and bool(text.strip().lstrip("."))


def as_extension(text: str) -> str:
    """An extension in its canonical spelling."""
    return text.strip().lstrip(".").lower()


class TargetConfig(Section):
    """The settings that every kind has; a plain string is the member."""

    member: str | None = Field(default=None, description="extension of the member; default: the index's")

    @model_validator(mode="before")
    @classmethod
    def member_alone(cls, raw: Any) -> Any:
        return {"member": raw} if isinstance(raw, str) else raw

    @model_validator(mode="after")
    def names_extension(self) -> Self:
        if self.member is not None and not is_extension(self.member):
            raise ValueError(f"member: found {self.member!r}, expected an extension such as 'cls' or 'seg.png'")
        return self

    @property
    def members(self) -> tuple[str, ...]:
        """The extensions to read; empty if the index decides."""
        return () if self.member is None else (as_extension(self.member),)

    def meanings(self, names: Sequence[str]) -> list[str | None]:
        """The class that each of the data set's classes counts as; None if it is ignored."""
        return list(names)


class TargetsConfig(Section):
    """The settings of no kind; `every_kind` adds a field for each existing kind."""

    @classmethod
    def chosen_by(cls, raw: Any) -> SectionType:
        return every_kind()

    def of(self, kind: str) -> TargetConfig | None:
        """The settings of a kind, if any."""
        found: TargetConfig | None = getattr(self, kind, None)
        return found

    def given(self) -> dict[str, TargetConfig]:
        """The kinds that have settings."""
        return {kind: config for kind in type(self).model_fields if (config := self.of(kind)) is not None}

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by kinds: each process creates the class with a field per kind, so a pickle cannot refer to it."""
        return with_settings, (self.given(),)


def with_settings(given: Mapping[str, TargetConfig]) -> TargetsConfig:
    """A TargetsConfig with these settings."""
    return every_kind()(**given) if given else TargetsConfig()


@cache
def every_kind() -> type[TargetsConfig]:
    kinds = importlib.import_module(PACKAGE)
    fields: dict[str, Any] = {name: (kinds.target_kind(name).config | None, None) for name in kinds.target_kinds()}
    found: type[TargetsConfig] = create_model("TargetsConfig", __base__=TargetsConfig, **fields)
    return found


def read_targets(raw: Any, info: ValidationInfo) -> TargetsConfig:
    """Validate as strictly as the enclosing section."""
    if isinstance(raw, TargetsConfig):
        return raw
    if not isinstance(raw, Mapping):
        raise ValueError("a mapping of kinds, such as class_id or mask, to extensions of members")
    if info.mode == "json":
        found = every_kind().model_validate_json(json.dumps(raw), strict=True)
    else:
        found = every_kind().model_validate(raw)
    return found if found.given() else TargetsConfig()  # all empty sections are equal


AnyTargets = Annotated[SerializeAsAny[TargetsConfig], PlainValidator(read_targets)]
