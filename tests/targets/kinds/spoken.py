"""A kind of label for tests: a note, and its language in another member."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from pipeline.config.targets import TargetConfig
from pipeline.images.geometry import Size
from pipeline.targets.base import BadLabel, ClassMap, Field, Target

LANGUAGES = "en", "de"


class Note(NamedTuple):
    text: bytes
    language: int


class SpokenConfig(TargetConfig):
    language: str | None = None

    @property
    def members(self) -> tuple[str, ...]:
        return () if self.member is None else (self.member, self.language or "lang")


@dataclass(frozen=True)
class Spoken(Target):
    kind: ClassVar[str] = "spoken"
    default_members: ClassVar[tuple[str, ...]] = ("note", "lang")
    classed: ClassVar[bool] = False
    config: ClassVar[type[TargetConfig]] = SpokenConfig

    @classmethod
    def build(cls, members: tuple[str, ...], config: TargetConfig, classes: ClassMap | None) -> Self:
        return cls(members)

    def inputs(self) -> dict[str, Any]:
        return {"members": list(self.members)}

    def fields(self, size: Size, *, evaluation: bool) -> Mapping[str, Field]:
        return {"note": Field("uint8", (None,)), "language": Field("int8", fill=-1)}

    def decode(self, members: Mapping[str, Any], image: Size | None) -> Note:
        text, language = bytes(self.member(members)), bytes(members[self.members[1]]).decode()
        if language not in LANGUAGES:
            raise BadLabel(f"no language {language!r}")
        return Note(text, LANGUAGES.index(language))

    def pack(self, value: Note, fields: Mapping[str, Any], row: int) -> None:
        fields["note"][row], fields["language"][row] = np.frombuffer(value.text, np.uint8), value.language
