"""One class per image: a member with a decimal class number."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

from pipeline.config.targets import TargetConfig
from pipeline.errors import DataError
from pipeline.targets.base import BadLabel, ClassMap, Field, Merge, Mixing, Summary, Target

if TYPE_CHECKING:  # an index needs no image libraries
    from pipeline.images.decode import Pixels
    from pipeline.images.geometry import Size

NUMBER = re.compile(rb"(?:\xef\xbb\xbf)?\s*(\d{1,18})\s*")  # Windows tools may write a byte order mark
LONGEST = 64  # bytes; anything longer is not a class number

FIELDS = {"label": Field("int64"), "label_mix": Field("int64"), "label_share": Field("float32", fill=1)}


class ClassLabel(NamedTuple):
    """The class is share * onehot(label) + (1 - share) * onehot(label_mix)."""

    label: int
    label_mix: int
    share: float = 1.0


@dataclass(frozen=True)
class ClassId(Target):
    """`numbers` maps the data set's classes to those of the stage; None if the classes are unknown."""

    kind: ClassVar[str] = "class_id"
    default_members: ClassVar[tuple[str, ...]] = ("cls",)
    mixes: ClassVar[bool] = True
    reads: ClassVar[int] = LONGEST
    columns: ClassVar[Mapping[str, Merge]] = {"low": "min", "high": "max"}

    numbers: tuple[int, ...] | None = None
    num_classes: int = 0  # of the stage

    @classmethod
    def build(cls, members: tuple[str, ...], config: TargetConfig, classes: ClassMap | None) -> Self:
        if classes is None:
            return cls(members)
        return cls(members, classes.numbers, classes.num_classes)

    def fields(self, size: Size, *, evaluation: bool) -> Mapping[str, Field]:
        return FIELDS

    def decode(self, members: Mapping[str, Any], image: Size | None) -> ClassLabel:
        number = read_number(self.member(members))
        if self.numbers is None:
            return ClassLabel(number, number)
        if number >= len(self.numbers):
            raise DataError(
                f"has label {number}, but labels must be 0 to {len(self.numbers) - 1} for {len(self.numbers)} "
                "classes; correct the label or the dataset's `classes`"
            )
        return self._labels[number]

    @cached_property
    def _labels(self) -> list[ClassLabel]:
        """Labels by the data set's class; created only once, as there are far more samples than classes."""
        return [ClassLabel(label, label) for label in self.numbers or ()]

    def inputs(self) -> dict[str, Any]:
        same = self.numbers == tuple(range(self.num_classes))
        return {"label_key": self.members[0], **({} if same else {"labels": list(self.numbers or ())})}

    def mix(self, value: ClassLabel, other: ClassLabel, how: Mixing) -> ClassLabel:
        return ClassLabel(value.label, other.label, how.share)

    def pack(self, value: ClassLabel, fields: Mapping[str, Any], row: int) -> None:
        fields["label"][row], fields["label_mix"][row], fields["label_share"][row] = value

    def summarise(self, sizes: Mapping[str, int], content: Mapping[str, bytes]) -> dict[str, int]:
        number = read_number(content.get(self.members[0], b""))
        return {"low": number, "high": number}

    @classmethod
    def known_classes(cls, summary: Summary) -> int | None:
        high = summary.get("high")
        return None if high is None else high + 1

    def count(self, value: ClassLabel) -> Mapping[int, int]:
        return {value.label: 1}

    def number(self, value: ClassLabel) -> int:
        return value.label

    def draw(self, picture: Pixels, value: ClassLabel, names: Sequence[str]) -> str:
        return names[value.label] if value.label < len(names) else str(value.label)


def read_number(data: bytes | memoryview) -> int:
    """The class number in a member. Raises BadLabel if it is not a plain decimal number."""
    text = bytes(data)
    match = NUMBER.fullmatch(text) if len(text) <= LONGEST else None
    if match is None:
        raise BadLabel(f"the label is {text[:40].decode('utf-8', 'replace')!r}, not a class number")
    return int(match[1])
