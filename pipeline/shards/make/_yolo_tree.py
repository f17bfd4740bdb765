"""YOLO's conventions: which images a data.yaml or a folder names, and which box file belongs to which image."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from pipeline.config.class_names import normalise_class_name, repeated, visible
from pipeline.errors import DataError
from pipeline.shards.class_file import read_class_names
from pipeline.shards.make._folder_classes import SPLITS
from pipeline.shards.make._folder_tree import EXTENSIONS, read_tree

IMAGES, LABELS = "images", "labels"
MEANT = "give a data.yaml with `names` and `train`, or a folder with images/ and labels/ and --classes"


class YoloItem(NamedTuple):
    """An image to include: its path below the source, its full path, its size in bytes, and the lines of its boxes."""

    name: str
    path: str
    size: int
    lines: bytes | None  # None without a file


class Yolo(NamedTuple):
    classes: list[str]
    splits: dict[str, list[YoloItem]]  # by the prefix of their shards
    left_out: dict[str, list[str]]


def read_yolo(src: Path, classes: str | None, prefix: str, out: Path) -> Yolo:
    """Classes and images of a data.yaml, or of a folder that holds one, or images/ and labels/. Raises DataError."""
    file = _yaml_of(src)
    if file is None:
        root, places = src, dict[str, Any](_places(src, prefix))
        names = read_class_names(classes or str(src / "classes.txt"))
    else:
        content = _content(file)
        root = file.parent / str(content.get("path") or "")
        root = root if root.is_dir() else file.parent  # data sets are often packed with the path of another machine
        places = {split: content[split] for split in ("train", "val", "test") if content.get(split)}
        names = read_class_names(classes) if classes is not None else _names(file, content)
        if not places:
            raise DataError(f"{file}: found no images; write `train: images/train`, and `val` likewise")
    splits, without = dict[str, list[YoloItem]](), list[str]()
    for split, given in places.items():
        images = [one for place in (given if isinstance(given, list) else [given]) for one in _images(root, place, out)]
        splits[split] = [_item(root, path) for path in dict.fromkeys(images)]
        without += [item.name for item in splits[split] if item.lines is None]
    if not any(splits.values()):
        raise DataError(f"{src}: found no images ({', '.join(EXTENSIONS)}); {MEANT}")
    whose = "images without a label file, imported without boxes"
    return Yolo(names, {split: items for split, items in splits.items() if items}, {whose: without})


def _yaml_of(src: Path) -> Path | None:
    if src.suffix.lower() in (".yaml", ".yml"):
        return src
    if not src.is_dir():
        raise DataError(f"{src}: neither a folder nor a YAML file; {MEANT}")
    found = [*src.glob("*.yaml"), *src.glob("*.yml")]
    if len(found) > 1 and (src / "data.yaml") not in found:
        raise DataError(f"{src}: found {len(found)} YAML files; name one of them with --src")
    return src / "data.yaml" if src / "data.yaml" in found else next(iter(found), None)


def _content(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text("utf-8-sig"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"{file}: cannot be read ({' '.join(str(error).split())}); {MEANT}") from None
    if not isinstance(content, dict):
        raise DataError(f"{file}: found no settings; {MEANT}")
    return content


def _names(file: Path, content: Mapping[str, Any]) -> list[str]:
    """The class names in the order of their numbers from 0. Raises DataError."""
    given = content.get("names")
    if isinstance(given, dict):
        if sorted(given, key=str) != sorted(range(len(given)), key=str):
            raise DataError(f"{file}: found the numbers {list(given)[:5]} in its `names`; number them from 0 up")
        given = [given[number] for number in range(len(given))]
    if not isinstance(given, list) or not given:
        raise DataError(f"{file}: found no `names` of classes; write them as a list, or give --classes")
    names = [normalise_class_name(str(name)) for name in given]
    if twice := repeated(names):
        raise DataError(f"{file}: found {twice[0]!r} twice in its `names`; give each class its own name")
    if content.get("nc") not in (None, len(names)):
        raise DataError(f"{file}: found nc {content['nc']}, but {len(names)} class names; correct one of the two")
    return names


def _places(src: Path, prefix: str) -> dict[str, str]:
    """Folders of images below a folder without a data.yaml, by split."""
    if not (src / IMAGES).is_dir():
        raise DataError(f"{src}: found neither a folder {IMAGES}/ nor a data.yaml; {MEANT}")
    tops = sorted(entry.name for entry in (src / IMAGES).iterdir() if entry.is_dir())
    splits = [top for top in tops if top.casefold() in SPLITS]
    return {top.casefold(): f"{IMAGES}/{top}" for top in splits} or {prefix: IMAGES}


def _images(root: Path, place: Any, out: Path) -> list[tuple[str, int]]:
    """(path, bytes) of the images in a folder or listed in a text file."""
    path = root / str(place)
    if path.is_dir():
        tree = read_tree(path, out, "the data.yaml lists folders of images")
        return [(str(path / image.path), image.size) for image in sorted(tree.all_images())]
    try:
        lines = [line.strip() for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: neither a folder of images nor a text file that lists them ({error}); {MEANT}"
        ) from None
    listed = [path.parent / line if line.startswith("./") else root / line for line in lines]
    return [(str(one), one.stat().st_size if one.is_file() else -1) for one in listed]


def _item(root: Path, image: tuple[str, int]) -> YoloItem:
    path, size = image
    return YoloItem(os.path.relpath(path, root), path, size, _lines(labels_of(path)))


def labels_of(path: str) -> Path:
    """The box file of an image: below labels/ instead of images/, otherwise next to it."""
    folder, slash, base = path.rpartition("/")
    parts = folder.split("/")
    if IMAGES in parts:
        at = len(parts) - 1 - parts[::-1].index(IMAGES)
        folder = "/".join([*parts[:at], LABELS, *parts[at + 1 :]])
    return Path(folder + slash + (base.rpartition(".")[0] or base) + ".txt")


def _lines(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"{visible(str(path))}: cannot be read ({error.strerror}); make it readable") from None
