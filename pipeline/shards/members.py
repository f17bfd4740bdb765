"""What a sample is: which members of a tar belong together, which of them is the image and which the label.

WebDataset's rule: the key is the path up to the first dot of the base name, the rest is the extension, and neighbours
with the same key belong together. The index, the tools and the loader all ask here.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TypeVar

from pipeline.config.data import is_extension
from pipeline.errors import DataError

T = TypeVar("T")

META_NAME = re.compile(r"(.*/)?__MACOSX/|__[^/]*__($|/)", re.DOTALL)
NAME = re.compile(r"((?:.*/)?[^./]+)\.([^/]*)", re.DOTALL)  # so `._x.png`, AppleDouble's, belongs to no sample
LABEL = re.compile(rb"(?:\xef\xbb\xbf)?\s*(\d{1,18})\s*")  # Windows tools may write a byte order mark
LONGEST_LABEL = 64  # bytes; whatever is longer is not a class number


class Unusable(ValueError):
    """A sample lacks its image or label; the message is the reason."""


@dataclass(frozen=True)
class Keys:
    """The members of a sample that are read, by extension: the image is the first of `image` that is present."""

    image: tuple[str, ...] = ("png", "jpg", "jpeg", "webp")
    label: str = "cls"

    def override(self, image_key: str | None, label_key: str | None) -> Keys:
        """These, or what is given instead: `image_key` lists extensions, separated by semicolons.

        Raises DataError where a key names no extension.
        """
        image = self.image if image_key is None else tuple(_extension(one, image_key) for one in image_key.split(";"))
        return Keys(image, self.label if label_key is None else _extension(label_key, label_key))

    @property
    def image_key(self) -> str:
        """As configs and the index write it."""
        return ";".join(self.image)

    def image_extension(self, extensions: Collection[str]) -> str | None:
        """Which of a sample's members is the image."""
        return next((extension for extension in self.image if extension in extensions), None)

    def image_of(self, members: Mapping[str, T]) -> T:
        """The image among the members of a sample. Raises Unusable."""
        extension = self.image_extension(members)
        if extension is None:
            raise Unusable(f"no image member (looked for {', '.join(self.image)}; found {', '.join(members)})")
        return members[extension]

    def label_of(self, members: Mapping[str, bytes | memoryview]) -> int:
        """The class number among the members of a sample. Raises Unusable."""
        if self.label not in members:
            raise Unusable(f"no label member (looked for {self.label}; found {', '.join(members)})")
        text = bytes(members[self.label])
        label = parse_label(text)
        if label is None:
            raise Unusable(f"the label is {text[:40].decode('utf-8', 'replace')!r}, not a class number")
        return label


DEFAULT_KEYS = Keys()


def split_name(name: str) -> tuple[str, str] | None:
    """(key, extension) of a member, the extension in lower case; None for names that belong to no sample."""
    match = NAME.fullmatch(name)
    if match is None or META_NAME.match(name):
        return None
    return match[1], match[2].lower()


def split_plain_name(name: str) -> tuple[str, str] | None:
    """As `split_name`, without the regular expressions where the name has no folder."""
    if "/" in name or name.startswith("__"):
        return split_name(name)
    key, dot, extension = name.partition(".")
    return (key, extension.lower()) if key and dot else None


def parse_label(text: bytes) -> int | None:
    """The class number a label member holds, or None if it is not a plain decimal number."""
    match = LABEL.fullmatch(text) if len(text) <= LONGEST_LABEL else None
    return int(match[1]) if match else None


def _extension(text: str, given: str) -> str:
    if not is_extension(text):
        raise DataError(f"{given!r} names no extension of a member; write for example 'jpg', or 'png;jpg' for either")
    return text.strip().lstrip(".").lower()
