"""Defines a sample: which members of a tar belong together, and which of them is the image.

WebDataset's rule: the key is the path up to the first dot of the base name, the rest is the extension, and neighbours
with the same key belong together. The index, the tools and the loader all use this module.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TypeVar

from pipeline.config.targets import as_extension, is_extension
from pipeline.errors import DataError

T = TypeVar("T")

META_NAME = re.compile(r"(.*/)?__MACOSX/|__[^/]*__($|/)", re.DOTALL)
NAME = re.compile(r"((?:.*/)?[^./]+)\.([^/]*)", re.DOTALL)  # excludes AppleDouble files such as `._x.png`


class Unusable(ValueError):
    """A sample lacks its image; the message is the reason."""


@dataclass(frozen=True)
class Keys:
    """Which member of a sample is its image: the first of these extensions that is present."""

    image: tuple[str, ...] = ("png", "jpg", "jpeg", "webp")

    def override(self, image_key: str | None) -> Keys:
        """These keys, or those given instead: extensions, separated by semicolons.

        Raises DataError if one of them is not an extension.
        """
        return self if image_key is None else Keys(tuple(extension(one, image_key) for one in image_key.split(";")))

    @property
    def image_key(self) -> str:
        """The extensions as written in configs and the index."""
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


DEFAULT_KEYS = Keys()


def split_name(name: str) -> tuple[str, str] | None:
    """(key, extension) of a member, the extension in lower case; None for names that belong to no sample."""
    match = NAME.fullmatch(name)
    if match is None or META_NAME.match(name):
        return None
    return match[1], match[2].lower()


def split_plain_name(name: str) -> tuple[str, str] | None:
    """Like `split_name`, but skips the regular expressions if the name has no folder."""
    if "/" in name or name.startswith("__"):
        return split_name(name)
    key, dot, extension = name.partition(".")
    return (key, extension.lower()) if key and dot else None


def extension(text: str, given: str) -> str:
    """An extension in its canonical spelling. Raises DataError if the text is not one."""
    if not is_extension(text):
        raise DataError(f"{given!r} is not a member extension; write for example 'jpg', or 'png;jpg' for either")
    return as_extension(text)
