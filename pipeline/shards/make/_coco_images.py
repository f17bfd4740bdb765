"""Finds the files of the images that COCO annotation files name, and their class maps of stuff."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import DataError
from pipeline.shards.make._coco_files import Coco, CocoImage
from pipeline.shards.make._files import stem
from pipeline.shards.make._folder_tree import Image, Tree, read_tree
from pipeline.shards.make._import_report import refuse_missing
from pipeline.shards.make._mask_pairs import named

MISSING = "images that do not exist"
UNNAMED = "images that no annotation file lists"
WITHOUT_MAP = "class maps of stuff that do not exist (their images are imported without)"


class CocoItem(NamedTuple):
    """An image to include: paths below the two folders, and its labels as stored in the shard."""

    path: str
    stuff: str | None
    width: int  # from the annotations, 0 if not given
    height: int
    described: bytes  # the rest of the JSON; empty if the files contain only captions
    captions: str
    size: int  # bytes of image and map
    empty: bool  # without annotations


class Arranged(NamedTuple):
    items: list[CocoItem]
    left_out: dict[str, list[str]]


def match_images(coco: Coco, images: Path, stuff: Path | None, out: Path, most_missing: float) -> Arranged:
    """Items in the order of their paths. Raises DataError if too many of the named images are missing."""
    tree = read_tree(images, out, "--images is a folder of images")
    found, missing = _located(coco, tree)
    refuse_missing(images, missing, len(coco.images), most_missing, "that the annotations list")
    maps = {} if stuff is None else _maps(stuff, out)
    items, without_map = [], []
    for file, image in sorted(found, key=lambda pair: pair[0].path):
        one = maps.get(stem(file.path)) or maps.get(stem(file.path).rpartition("/")[2])
        if stuff is not None and one is None:
            without_map.append(file.path)
        items.append(_item(file, one, image, described=bool(coco.classes)))
    taken = {item.path for item in items}
    unnamed = [file.path for file in tree.all_images() if file.path not in taken]
    left_out = {MISSING: missing, UNNAMED: unnamed, WITHOUT_MAP: without_map, **coco.left_out}
    return Arranged(items, {why: names for why, names in left_out.items() if names})


def _located(coco: Coco, tree: Tree) -> tuple[list[tuple[Image, CocoImage]], list[str]]:
    """Files with their annotations, matched by the given path or, failing that, its last part; and missing images."""
    by_path = {file.path: file for file in tree.all_images()}
    by_base: dict[str, list[Image]] = {}
    for file in by_path.values():
        by_base.setdefault(file.path.rpartition("/")[2], []).append(file)
    found, missing = dict[str, tuple[Image, CocoImage]](), list[str]()
    for name, image in coco.images.items():
        candidates = [by_path[name]] if name in by_path else by_base.get(name.rpartition("/")[2], [])
        if len(candidates) != 1:
            missing.append(name)
        elif (other := found.setdefault(candidates[0].path, (candidates[0], image))[1]) is not image:
            raise DataError(
                f"{other.file_name} and {name} of the annotations are both {candidates[0].path} below --images; give "
                "the parent folder, in which they differ"
            )
    return list(found.values()), missing


def _maps(stuff: Path, out: Path) -> dict[str, Image]:
    """PNGs by path without suffix."""
    found, _ = named(read_tree(stuff, out, "--stuff is a folder of PNGs").all_images(), ".png")
    return found


def _item(file: Image, stuff: Image | None, image: CocoImage, *, described: bool) -> CocoItem:
    said = {"image_id": image.image_id, "file_name": image.file_name, "annotations": image.annotations}
    return CocoItem(
        file.path,
        None if stuff is None else stuff.path,
        image.width,
        image.height,
        json.dumps(said, separators=(",", ":")).encode() if described else b"",
        "\n".join(image.captions),
        file.size + (0 if stuff is None else stuff.size),
        not image.annotations,
    )
