"""Captions: a text member with one per line, or a JSON field with one or a list of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from pydantic import Field as Setting
from pydantic import model_validator

from pipeline.config.targets import TargetConfig
from pipeline.targets.base import BadLabel, ClassMap, Field, Target

if TYPE_CHECKING:  # an index needs no image libraries
    from pipeline.images.decode import Pixels
    from pipeline.images.geometry import Size
    from pipeline.text.tokenizer import Tokenizer

LONGEST = 64 << 10  # bytes; indexing skips longer members
CAPTION = "caption"  # default field of a JSON member


def is_json(member: str) -> bool:
    return member.rpartition(".")[2] == "json"


class TextConfig(TargetConfig):
    field: str | None = Setting(
        default=None, min_length=1, description="field of a JSON member with the captions; default: caption"
    )

    @model_validator(mode="after")
    def field_of_json(self) -> Self:
        if self.field is not None and self.member is not None and not is_json(self.members[0]):
            raise ValueError(
                f"field: found {self.field!r}, but {self.member!r} is not JSON; name a member such as json, or leave "
                "out the field"
            )
        return self


@dataclass(frozen=True)
class Text(Target):
    """A value is the captions of a sample, in order; training draws one of them for each slot.

    A batch holds their tokens, or nothing if no `tokenizer` is set.
    """

    kind: ClassVar[str] = "text"
    default_members: ClassVar[tuple[str, ...]] = ("txt",)
    classed: ClassVar[bool] = False
    picks: ClassVar[bool] = True
    config: ClassVar[type[TargetConfig]] = TextConfig
    reads: ClassVar[int] = LONGEST

    field: str | None = None
    tokenizer: Tokenizer | None = None

    @classmethod
    def build(cls, members: tuple[str, ...], config: TargetConfig, classes: ClassMap | None) -> Self:
        assert isinstance(config, TextConfig)
        return cls(members, (config.field or CAPTION) if members and is_json(members[0]) else None)

    def with_tokenizer(self, tokenizer: Tokenizer) -> Self:
        return replace(self, tokenizer=tokenizer)

    def inputs(self) -> dict[str, Any]:
        return {"member": self.members[0], **({} if self.field is None else {"field": self.field})}

    def fields(self, size: Size, *, evaluation: bool) -> Mapping[str, Field]:
        """L tokens of the drawn caption, and its number, which equal captions share; in evaluation, of all captions."""
        if self.tokenizer is None:
            return {}
        length = self.tokenizer.length
        if evaluation:
            return {"all_tokens": Field("int32", (None, length)), "all_captions": Field("int64", (None,))}
        return {"tokens": Field("int32", (length,)), "caption": Field("int64")}

    def decode(self, members: Mapping[str, Any], image: Size | None) -> tuple[str, ...]:
        data = bytes(self.member(members, "caption"))
        try:
            text = data.decode("utf-8-sig")  # Windows tools may write a byte order mark
        except UnicodeDecodeError as error:
            raise BadLabel(f"the member {self.members[0]} is not UTF-8 (byte {error.start})") from None
        lines = text.splitlines() if self.field is None else self._of_json(text)
        captions = tuple(caption for line in lines if (caption := " ".join(line.split())))
        if not captions:
            raise BadLabel("the caption is empty")
        return captions

    def _of_json(self, text: str) -> list[str]:
        """The captions of a JSON member. Raises BadLabel if there are none or they are not texts."""
        try:
            found = json.loads(text)
        except ValueError:
            raise BadLabel(f"the member {self.members[0]} is not valid JSON") from None
        if not isinstance(found, dict) or self.field not in found:
            names = ", ".join(map(str, found)) if isinstance(found, dict) else "no fields"
            raise BadLabel(f"no caption (looked for {self.field!r} in {self.members[0]}; found {names[:200]})")
        value = found[self.field]
        captions = [value] if isinstance(value, str) else value
        if not isinstance(captions, list) or not all(isinstance(one, str) for one in captions):
            raise BadLabel(f"{self.field!r} in {self.members[0]} is neither a text nor a list of texts")
        return captions

    def pick(self, value: tuple[str, ...], rng: np.random.Generator) -> tuple[str, ...]:
        return value if len(value) == 1 else (value[int(rng.integers(len(value)))],)

    def pack(self, value: tuple[str, ...], fields: Mapping[str, Any], row: int) -> None:
        if self.tokenizer is None:
            return
        tokens = self.tokenizer.encode(value)  # [captions, L]
        if "tokens" in fields:
            fields["tokens"][row], fields["caption"][row] = tokens[0], number_of(tokens[0])
        else:
            fields["all_tokens"][row] = tokens
            fields["all_captions"][row] = np.array([number_of(one) for one in tokens], np.int64)

    def summarise(self, sizes: Mapping[str, int], content: Mapping[str, bytes]) -> dict[str, int]:
        member = self.members[0]
        if member in content:
            self.decode(content, None)
        return super().summarise(sizes, content)

    def figures(self, value: tuple[str, ...]) -> Mapping[str, Sequence[int]]:
        return {
            "captions_per_sample": [len(value)],
            "bytes": [len(caption.encode()) for caption in value],
            "words": [len(caption.split()) for caption in value],
        }

    def parts(self, value: tuple[str, ...]) -> Sequence[int]:
        return [hash_of(caption.encode()) for caption in value]

    def draw(self, picture: Pixels, value: tuple[str, ...], names: Sequence[str]) -> str:
        return " | ".join(value)


def number_of(tokens: np.ndarray) -> int:
    """64-bit hash of a caption's tokens [L]."""
    return hash_of(tokens.tobytes())


def hash_of(data: bytes) -> int:
    """64-bit hash of bytes."""
    digest = hashlib.blake2b(data, digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
