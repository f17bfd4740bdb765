"""Lists a user's folder: its images, at any depth, and whatever else it contains."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import DataError

EXTENSIONS = ".png", ".jpg", ".jpeg", ".webp"
# In addition to all names that begin with a dot. Lower case.
SYSTEM_NAMES = {
    "__macosx",
    "thumbs.db",
    "desktop.ini",
    "@eadir",
    "#recycle",
    "$recycle.bin",
    "system volume information",
    "lost+found",
}


class Image(NamedTuple):
    """A file that is an image by its name. `path` is below the source; `size` in bytes, -1 for a dead link."""

    path: str
    size: int


@dataclass
class Tree:
    """The contents of a source folder. Paths are below it, with `/`."""

    images: dict[str, list[Image]] = field(default_factory=dict)  # by top-level folder, which may hold none
    folders: list[str] = field(default_factory=list)  # all that were read, at any depth
    loose: list[Image] = field(default_factory=list)  # images in the source folder itself
    others: Counter[str] = field(default_factory=Counter)  # files that are not images, by extension
    system: Counter[str] = field(default_factory=Counter)  # leftovers of systems and programs, by name
    again: list[str] = field(default_factory=list)  # links to folders that are read elsewhere, or back up
    output: str | None = None  # the output folder, if it lies in the source

    def all_images(self) -> list[Image]:
        return [*self.loose, *(image for images in self.images.values() for image in images)]


def read_tree(
    src: Path, out: Path | None, meant: str = "--src is a folder with one folder of images per class"
) -> Tree:
    """Reads every folder below `src` once: real ones first, then links, which may lead back up or to one another.

    `meant` begins with the name of the option and says what it is for, for use in errors.
    Raises DataError for a folder that cannot be listed, or if `out` is `src` itself or one of its image folders.
    """
    return TreeReader(src, out, meant).read()


class TreeReader:
    """Tracks visited folders by device and inode."""

    def __init__(self, src: Path, out: Path | None, meant: str):
        self.src, self.tree, self.links = src, Tree(), list[str]()
        self.option = meant.partition(" ")[0]
        root = src.resolve()
        try:
            self.seen = {device_and_inode(folder) for folder in (root, *root.parents)}
        except OSError as error:
            raise DataError(f"{src}: cannot be listed ({error.strerror}); {meant}") from None
        if not root.is_dir():
            raise DataError(f"{src}: not a folder; {meant}")
        self.output = out
        self.out = device_and_inode(out) if out is not None and out.exists() else None
        if self.out is not None and self.out == device_and_inode(root):
            raise DataError(f"{src}: given as both {self.option} and --out; choose another --out")

    def read(self) -> Tree:
        self.tree.loose, tops = self.list_folder("")
        for top in tops:
            self.tree.images[top] = list(self.images_below(top))
        while self.links:
            link = self.links.pop(0)
            if self.enters(link):
                self.tree.images.setdefault(link.partition("/")[0], []).extend(self.images_below(link))
        return self.tree

    def images_below(self, top: str) -> Iterator[Image]:
        """Yields the images of a folder, then those of its subfolders, in the order of their names."""
        waiting = [top]
        while waiting:
            images, folders = self.list_folder(waiting.pop())
            yield from images
            waiting += reversed(folders)

    def list_folder(self, folder: str) -> tuple[list[Image], list[str]]:
        """The images and the subfolders to read in one folder; records whatever else it contains."""
        path = os.path.join(self.src, folder) if folder else str(self.src)
        try:
            with os.scandir(path) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            raise self.unlistable(folder, error) from None
        images: list[Image] = []
        folders: list[str] = []
        for entry in entries:
            below = f"{folder}/{entry.name}" if folder else entry.name
            if is_system(entry.name):
                self.tree.system["._*" if entry.name.startswith("._") else entry.name] += 1
            elif is_folder(entry):
                if entry.is_symlink():
                    self.links.append(below)
                elif self.enters(below):
                    folders.append(below)
            else:
                kind = os.path.splitext(entry.name)[1].lower()
                if kind in EXTENSIONS and (entry.is_symlink() or entry.is_file()):
                    images.append(Image(below, size_of(entry)))
                else:
                    self.tree.others[kind or "without extension"] += 1
        return images, folders

    def enters(self, folder: str) -> bool:
        """Whether to read a folder: skips the output and folders already read."""
        try:
            found = device_and_inode(self.src / folder)
        except OSError as error:
            raise self.unlistable(folder, error) from None
        if self.output is not None and found == self.out:
            if holds_images(self.output):
                raise DataError(
                    f"{self.output}: is --out, but holds images of {self.option}, which would be left out; choose "
                    "another --out"
                )
            self.tree.output = folder
        elif found in self.seen:
            self.tree.again.append(folder)
        else:
            self.seen.add(found)
            self.tree.folders.append(folder)
            return True
        return False

    def unlistable(self, folder: str, error: OSError) -> DataError:
        return DataError(
            f"{self.src / folder}: cannot be listed ({error.strerror}); make it readable, or move it out of {self.src}"
        )


def device_and_inode(folder: Path) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def holds_images(folder: Path) -> bool:
    """Whether a folder is one of images; a folder of shards may have a preview image next to its tars."""
    return not any(folder.glob("*.tar")) and any(path.suffix.lower() in EXTENSIONS for path in folder.rglob("*"))


def is_system(name: str) -> bool:
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a circular link
        return False


def size_of(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_size
    except OSError:  # a dead link is reported when it is read
        return -1
