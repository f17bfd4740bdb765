"""The images that a user names: files, folders of them at any depth, or shards; each under a unique name."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from pipeline.config.class_names import visible
from pipeline.errors import DataError
from pipeline.images.decode import Data
from pipeline.shards import urls
from pipeline.shards.index import DatasetIndex
from pipeline.shards.index_file import load_index
from pipeline.shards.make._folder_tree import read_tree
from pipeline.shards.members import Unusable
from pipeline.shards.pattern import BRACES, WILDCARD
from pipeline.shards.samples import RawMembers, shard_samples

UNSAFE = re.compile(r'[\x00-\x1f\x7f%<>:"\\|?*]')  # in file names on some systems


class FoundImage(NamedTuple):
    """An image, or why it is unavailable. `below` is a unique relative path to name output files after."""

    name: str  # its path, or SHARD/KEY
    below: str
    data: Data | None
    fault: str = ""
    members: Mapping[str, Data] = MappingProxyType({})  # all members of its sample in a shard


@dataclass(frozen=True)
class Pictures:
    """`files` by absolute path, with the path as given, then the images of `shards`; each once, in that order."""

    files: dict[str, str]
    shards: dict[str, DatasetIndex]  # by folder or URL

    def __len__(self) -> int:
        return len(self.files) + sum(index.num_samples for index in self.shards.values())

    def __iter__(self) -> Iterator[FoundImage]:
        base = self._base()
        for path, given in self.files.items():
            below = safe(os.path.relpath(path, base))
            try:
                yield FoundImage(given, below, Path(path).read_bytes())
            except OSError as error:
                yield FoundImage(given, below, None, error.strerror or str(error))
        for folder, index in self.shards.items():
            above = os.path.relpath(as_path(folder), base)
            yield from self._of_shards(index, [] if above == "." else [safe(above)])

    def _of_shards(self, index: DatasetIndex, above: list[str]) -> Iterator[FoundImage]:
        for shard in index.shards:
            stem, seen = shard.url.rpartition("/")[2].removesuffix(".tar"), set[str]()
            for number, key, members, fault in shard_samples(shard):
                own = safe(key) if members is not None and key not in seen else f"%-{number}"
                seen.add(key)
                yield self._of_sample(index, f"{shard.url}/{key}", "/".join([*above, stem, own]), members, fault)

    def _of_sample(
        self, index: DatasetIndex, name: str, below: str, members: RawMembers | None, fault: str
    ) -> FoundImage:
        try:
            return FoundImage(
                name, below, None if members is None else index.keys.image_of(members), fault, members or {}
            )
        except Unusable as reason:
            return FoundImage(name, below, None, str(reason))

    def _base(self) -> str:
        """The deepest folder that holds all of them."""
        places = [*map(os.path.dirname, self.files), *map(as_path, self.shards)]
        return os.path.commonpath(places) if places else "/"


def pictures(given: Sequence[str], out: Path | None = None) -> Pictures:
    """Finds the images that paths, folders and shard patterns name; skips images in the folder `out`.

    A folder with tars counts as shards, and a missing file as an unreadable image. Raises DataError for a folder
    without images, and for shards without an index.
    """
    files: dict[str, str] = {}
    shards: dict[str, DatasetIndex] = {}
    for text in given:
        path = Path(text)
        if is_shards(text):
            index = load_index(text)
            if index.url in shards:
                raise DataError(
                    f"{text}: found a second pattern for shards in the same folder; give one pattern per folder"
                )
            shards[index.url] = index
        elif path.is_dir():
            names = sorted(image.path for image in read_tree(path, None, "a folder of images").all_images())
            inside = [name for name in names if out is None or not is_below(path / name, out)]
            if not inside:
                raise DataError(f"{text}: found no images; give a folder with PNG, JPEG or WebP files, or with tars")
            for name in inside:
                files.setdefault(os.path.abspath(path / name), visible(str(path / name)))
        else:
            files.setdefault(os.path.abspath(text), visible(text))
    return Pictures(files, shards)


def is_shards(text: str) -> bool:
    """Whether a text names shards rather than an image or a folder of images."""
    if os.path.isdir(text):
        return any(Path(text).glob("*.tar"))
    if os.path.lexists(text):
        return text.endswith(".tar")
    return text.endswith(".tar") or not urls.is_local(text) or bool(BRACES.search(text) or WILDCARD.search(text))


def is_below(path: Path, folder: Path) -> bool:
    return os.path.abspath(path).startswith(os.path.abspath(folder) + os.sep)


def as_path(url: str) -> str:
    """A URL as an absolute path that differs from every local one."""
    return url if urls.is_local(url) else f"/{url.replace('://', ':/')}"


def safe(path: str) -> str:
    """A relative path that cannot leave its folder, whatever the key in a tar; different inputs stay different.

    Characters that file systems reject become %XX, and so does %; an empty name becomes a lone %.
    """
    parts = (UNSAFE.sub(_escaped, part) for part in path.split("/"))
    return "/".join(part.replace(".", "%2e") if part in (".", "..") else part or "%" for part in parts)


def _escaped(match: re.Match[str]) -> str:
    return f"%{ord(match[0]):02x}"
