"""Pairs images with masks of the same path and name, apart from their suffixes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from pipeline.config.class_names import visible
from pipeline.errors import DataError
from pipeline.shards.make._folder_tree import Image


class MaskPair(NamedTuple):
    """Paths below the two folders, and the bytes of both files together."""

    image: str
    mask: str
    size: int


class Words(NamedTuple):
    """What errors call the second file of a pair and its folder's option."""

    noun: str = "mask"
    option: str = "--masks"
    example: str = "--image-suffix _leftImg8bit.png --mask-suffix _gtFine_labelIds.png"


MASKS = Words()


@dataclass
class Pairing:
    pairs: list[MaskPair]
    left_out: dict[str, list[str]] = field(default_factory=dict)  # paths by reason, e.g. "images without a mask"


def pair_up(
    images: Iterable[Image],
    masks: Iterable[Image],
    suffixes: tuple[str | None, str],
    only: Path | None,
    words: Words = MASKS,
) -> Pairing:
    """Pairs, and files without a partner. `suffixes` are those of images (None: any extension) and masks.

    `only` is a file that names the pairs to take, one per line, without suffix. Raises DataError if none is left, or if
    two files share a name.
    """
    by_name, other_images = named(images, suffixes[0])
    mask_of, other_masks = named(masks, suffixes[1])
    names = sorted(by_name.keys() & mask_of.keys())
    left_out = {
        "images whose names end differently": other_images,
        f"{words.noun}s whose names end differently": other_masks,
        f"images without a {words.noun}": [by_name[name].path for name in sorted(by_name.keys() - mask_of.keys())],
        f"{words.noun}s without an image": [mask_of[name].path for name in sorted(mask_of.keys() - by_name.keys())],
    }
    if not names:
        raise no_pair(by_name, mask_of, other_masks, suffixes, words)
    if only is not None:
        wanted = read_names(only)
        left_out["pairs that --only does not list"] = [by_name[name].path for name in names if name not in wanted]
        left_out["names in --only without a pair"] = sorted(wanted - set(names))
        names = [name for name in names if name in wanted]
        if not names:
            raise DataError(
                f"--only {only}: found no name of a pair; write names such as {next(iter(by_name))!r}, one per line"
            )
    pairs = [
        MaskPair(by_name[name].path, mask_of[name].path, by_name[name].size + mask_of[name].size) for name in names
    ]
    return Pairing(pairs, {why: paths for why, paths in left_out.items() if paths})


def named(files: Iterable[Image], suffix: str | None) -> tuple[dict[str, Image], list[str]]:
    """Files by path without the suffix, and those with another suffix. Raises DataError if two share a name."""
    found: dict[str, Image] = {}
    others = []
    for file in files:
        if suffix is not None and not file.path.endswith(suffix):
            others.append(file.path)
            continue
        name = file.path.removesuffix(PurePosixPath(file.path).suffix if suffix is None else suffix)
        if name in found:
            raise DataError(
                f"{visible(found[name].path)} and {visible(file.path)} would be one sample; move one of them out"
            )
        found[name] = file
    return found, others


def no_pair(
    images: Mapping[str, Image],
    masks: Mapping[str, Image],
    others: list[str],
    suffixes: tuple[str | None, str],
    words: Words,
) -> DataError:
    """The error if no names match, with an example from each side."""
    if not images:
        return DataError(f"--images: found no image{f' named *{suffixes[0]}' if suffixes[0] else ''}; correct the path")
    image = next(iter(images.values())).path
    mask = next((file.path for file in masks.values()), next(iter(others), None))
    if mask is None:
        return DataError(f"{words.option}: found no PNG; correct the path")
    return DataError(
        f"no image has a {words.noun} of the same name: one image is {visible(image)!r} below --images, one "
        f"{words.noun} {visible(mask)!r} below {words.option}; if the names end differently, say how, such as "
        f"{words.example}"
    )


def read_names(path: Path) -> set[str]:
    """The nonblank lines of a text file. Raises DataError."""
    try:
        lines = path.read_text("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--only {path}: cannot be read ({error})") from None
    return {name for line in lines if (name := line.strip())}
