"""Decides whether the folders of a tree are classes, splits of classes, or neither; rejects ambiguous trees."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from pipeline.config.class_names import normalise_class_name, visible
from pipeline.errors import DataError
from pipeline.shards.make._files import shortlist
from pipeline.shards.make._folder_tree import EXTENSIONS, Image, Tree

SPLITS = {"train", "training", "val", "valid", "validation", "dev", "test", "testing", "eval"}
TRAINING = {"train", "training"}
DEFAULT_PREFIX = "train"
UNLABELLED = "without labels, with --labels none"

LABELS = "top", "path", "none"  # what names an image's class: its top folder, its whole path, or nothing


class ClassFolder(NamedTuple):
    """A folder with images of one class: `below` is its path below the split, and `root` the path of the split."""

    root: str
    below: str

    @property
    def path(self) -> str:
        return self.root + self.below

    @property
    def name(self) -> str:
        return "/".join(map(normalise_class_name, self.below.split("/")))


Folders = dict[ClassFolder, list[Image]]


class File(NamedTuple):
    """An image's path below the source, its class number (None without labels) and its bytes."""

    path: str
    label: int | None
    size: int


@dataclass
class FolderLayout:
    """The images to include. `splits` are keyed by the prefix of their shards."""

    classes: list[str]
    splits: dict[str, list[File]]
    unlabelled: list[str] = field(default_factory=list)  # images outside class folders
    empty: list[str] = field(default_factory=list)  # folders without images
    nested: list[str] = field(default_factory=list)  # subfolders of class folders, which count towards these
    spellings: list[str] = field(default_factory=list)  # classes with several folders, composed and decomposed


def sort_into_classes(tree: Tree, src: Path, prefix: str | None, labels: str = "top") -> FolderLayout:
    """Classes and splits of a tree. Raises DataError, with a way out, if the tree is ambiguous."""
    if labels == "none":
        return without_labels(tree, src, prefix)
    tops = {top: images for top, images in tree.images.items() if images}
    if not tops:
        raise nothing_found(tree, src)
    unlabelled = [image.path for image in tree.loose]
    splits = split_folders(tops, src, prefix)
    groups: dict[str, Folders] = {}
    for name, root, images in split_images(tops, splits, prefix):
        folders, outside = class_folders(images, root, labels)
        unlabelled += outside
        if folders:
            groups[name] = folders
    everything = [folder for folders in groups.values() for folder in folders]
    if not everything:
        raise DataError(
            f"{src}: its splits ({', '.join(splits)}) have images but no class folders; sort them into "
            f"{src / splits[0]}/CLASS/, or import them {UNLABELLED}"
        )
    check_spelling(everything, src)
    classes = sorted({folder.name for folder in everything})
    if len(classes) == 1:
        raise one_class(groups, src)
    check_training(groups, src)
    taken = sum(map(len, tops.values()))
    if len(tree.loose) > taken:
        raise DataError(
            f"{src}: found {len(tree.loose):,} images outside class folders but only {taken:,} inside "
            f"({shortlist(classes)}); sort them into {src}/CLASS/, move them out, or import all {UNLABELLED}"
        )
    numbers = {name: number for number, name in enumerate(classes)}
    filled = {*tops, *(folder.path for folder in everything)}
    spelt = [Counter(folder.name for folder in folders) for folders in groups.values()]
    return FolderLayout(
        classes,
        {split: numbered_files(folders, numbers) for split, folders in groups.items()},
        unlabelled,
        [folder for folder in tree.folders if folder.count("/") <= bool(splits) and folder not in filled],
        [below for folders in groups.values() for below in nested_folders(folders, classes, src)],
        [name for name in classes if any(counts[name] > 1 for counts in spelt)],
    )


def without_labels(tree: Tree, src: Path, prefix: str | None) -> FolderLayout:
    """Every image at any depth; ignores folders, unless all at the top are splits."""
    tops = {top: images for top, images in tree.images.items() if images}
    if not tops and not tree.loose:
        raise DataError(f"{src}: found no images; put {', '.join(EXTENSIONS)} files into it{found_instead(tree)}")
    splits = [] if tree.loose else split_folders(tops, src, prefix)
    groups = {name: images for name, _, images in split_images({"": tree.loose, **tops}, splits, prefix)}
    return FolderLayout(
        [], {name: [File(image.path, None, image.size) for image in images] for name, images in groups.items()}
    )


def split_images(
    tops: Mapping[str, list[Image]], splits: list[str], prefix: str | None
) -> Iterator[tuple[str, str, list[Image]]]:
    """Yields each split's shard prefix, path with a slash, and images; all images if there are no splits."""
    for top in splits:
        yield top.casefold(), f"{top}/", tops[top]
    if not splits:
        yield prefix or DEFAULT_PREFIX, "", [image for images in tops.values() for image in images]


def split_folders(tops: Iterable[str], src: Path, prefix: str | None) -> list[str]:
    """The top-level folders if all are splits; none if they are classes, one of which may be called `train`."""
    splits = [top for top in tops if top.casefold() in SPLITS]
    others = [top for top in tops if top not in splits]
    if not splits or (others and len(splits) == 1):
        return []
    named = ", ".join(splits)
    if others:
        raise DataError(
            f"{src}: found the splits {named} next to {visible(others[0])!r}; move everything else out of it, or make "
            f"each split with --src {src / splits[0]} --prefix {splits[0]}"
        )
    if prefix is not None:
        raise DataError(
            f"{src}: found splits ({named}), whose names become their shards' prefixes, so --prefix {prefix} does not "
            f"apply; leave it out, or make one split with --src {src / splits[0]} --prefix {prefix}"
        )
    if len({split.casefold() for split in splits}) < len(splits):
        raise DataError(f"{src}: two of its splits ({named}) only differ in case; merge or rename them")
    return splits


def class_folders(images: Iterable[Image], root: str, labels: str) -> tuple[Folders, list[str]]:
    """The images of a split by its class folders, and those outside them."""
    folders: Folders = {}
    outside = []
    for image in images:
        *above, _ = image.path.removeprefix(root).split("/")
        if above:
            below = above[0] if labels == "top" else "/".join(above)
            folders.setdefault(ClassFolder(root, below), []).append(image)
        else:
            outside.append(image.path)
    return folders, outside


def numbered_files(folders: Folders, numbers: Mapping[str, int]) -> list[File]:
    """Files sorted by class number and folder, then as they were found."""
    files = []
    for folder in sorted(folders, key=lambda folder: (numbers[folder.name], folder.path)):
        files += [File(image.path, numbers[folder.name], image.size) for image in folders[folder]]
    return files


def check_spelling(folders: Iterable[ClassFolder], src: Path) -> None:
    """Rejects names that differ only in case or surrounding white space; composed and decomposed accents are equal."""
    spelt: dict[str, str] = {}
    for folder in folders:
        composed = unicodedata.normalize("NFC", folder.below)
        other = spelt.setdefault(folder.name.lower(), composed)
        if other != composed:
            raise DataError(
                f"{src}: the class folders {visible(other)!r} and {visible(composed)!r} only differ in case or white "
                "space; merge them, or rename one"
            )


def one_class(groups: Mapping[str, Folders], src: Path) -> DataError:
    """The error for images that would all have one label; names the intended folder if it is a subfolder."""
    folders = [folder.path for found in groups.values() for folder in found]
    images = [image.path for found in groups.values() for images in found.values() for image in images]
    inner = os.path.commonpath([path.rpartition("/")[0] for path in images])
    below = {
        path.removeprefix(f"{inner}/").partition("/")[0] for path in images if path.count("/") > inner.count("/") + 1
    }
    remedy = f"use --src {src / inner}" if len(below) > 1 else "put a folder of images for each other class next to it"
    return DataError(f"{src}: all images are in one class folder, {visible(folders[0])!r}; {remedy}")


def check_training(groups: Mapping[str, Folders], src: Path) -> None:
    """Raises DataError for a class that is not in the training split, since nothing could learn it."""
    training = next((folders for split, folders in groups.items() if split in TRAINING), None)
    if training is None:
        return
    known = {folder.name for folder in training}
    where = src / next(iter(training)).root.removesuffix("/")
    for folder in (folder for folders in groups.values() for folder in folders):
        if folder.name not in known:
            raise DataError(
                f"{src / folder.path}: {where} has no class {folder.name!r}, so it cannot be learnt; rename the "
                f"folder, move it elsewhere, or put images of the class into {where}"
            )


def nested_folders(folders: Folders, classes: list[str], src: Path) -> list[str]:
    """Subfolders of the class folders. Raises DataError if one has the name of another class, or they are splits."""
    found = []
    known = set(classes)
    for folder, images in folders.items():
        top = folder.path
        parents = {image.path.rpartition("/")[0] for image in images} - {top}
        for parent in sorted(parents):
            for name in map(normalise_class_name, parent.removeprefix(f"{top}/").split("/")):
                if name in known and name != folder.name:
                    raise DataError(
                        f"{src / parent}: its images would be of class {folder.name!r}, but {name!r} is also a class; "
                        f"move it to {src / top.rpartition('/')[0] / name}, or rename it"
                    )
        below = {parent.removeprefix(f"{top}/").partition("/")[0] for parent in parents}
        splits = sorted(name for name in below if name.casefold() in SPLITS)
        if len(splits) > 1:
            raise DataError(
                f"{src / top}: found the splits {', '.join(splits)}, which would be mixed; put splits above classes: "
                f"{src / splits[0] / folder.name}"
            )
        found += sorted(parents)
    return found


def nothing_found(tree: Tree, src: Path) -> DataError:
    found = found_instead(tree)
    if tree.loose:
        return DataError(
            f"{src}: found images but no class folders; sort them into {src}/CLASS/, give the parent folder with "
            f"--src if this one is a class, or import them {UNLABELLED}"
        )
    if tree.images:
        return DataError(f"{src}: found no images; put {', '.join(EXTENSIONS)} files into its class folders{found}")
    return DataError(f"{src}: found no folders; --src must be a folder with one folder of images per class{found}")


def found_instead(tree: Tree) -> str:
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in tree.others.most_common(3))
    return f" (found {kinds})" if kinds else ""
