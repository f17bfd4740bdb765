"""A user's own images: one folder per class becomes shards, shuffled once, every file's bytes as they are."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np

from pipeline.errors import DataError
from pipeline.images.decode import BadImage
from pipeline.images.shrink import shrink
from pipeline.shards import store
from pipeline.shards.build import build_index
from pipeline.shards.index import INDEX_NAME, DatasetIndex, decode_index
from pipeline.shards.parallel import map_shards
from pipeline.shards.plan import agree_on_plan
from pipeline.shards.write import TarWriter, shard_name

EXTENSIONS = ".png", ".jpg", ".jpeg", ".webp"
SIGNATURES = re.compile(rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|RIFF....WEBP", re.DOTALL)
SPLITS = {"train", "val", "valid", "validation", "test"}
LONGEST_STEM = 60  # keeps member names within the 100 bytes that a plain tar header holds


@dataclass(frozen=True)
class Plan:
    """What decides the content of the shards."""

    seed: int
    samples_per_shard: int
    num_files: int
    listing_sha256: str  # of every file's path below `src` and size
    max_side: int | None
    quality: int


@dataclass(frozen=True)
class ShardTask:
    """Write one shard; gives the files that were left out, with the reason."""

    src: str
    out: str
    prefix: str
    max_side: int | None
    quality: int

    def __call__(self, job: tuple[int, list[tuple[int, str, int]]]) -> list[tuple[str, str]]:
        number, files = job
        rejected = []
        with TarWriter(Path(self.out) / shard_name(self.prefix, number)) as tar:
            for position, name, label in files:
                try:
                    data = Path(self.src, name).read_bytes()
                except OSError as error:
                    rejected.append((name, error.strerror or str(error)))
                    continue
                if not SIGNATURES.match(data):
                    rejected.append((name, "is empty" if not data else "is no PNG, JPEG or WebP inside"))
                    continue
                extension = Path(name).suffix.lower()[1:]
                if self.max_side is not None:
                    try:
                        extension, data = shrink(data, self.max_side, self.quality) or (extension, data)
                    except BadImage as bad:
                        rejected.append((name, str(bad)))
                        continue
                tar.write(_key(position, name), {extension: data, "cls": str(label).encode()})
            tar.finish()
        return rejected


def make(
    out: Path,
    *,
    src: Annotated[Path, "folder that holds one folder of images per class"],
    samples_per_shard: Annotated[int, "images in each shard"] = 10_000,
    prefix: Annotated[str, "shards are named PREFIX-000000.tar and so on"] = "train",
    max_side: Annotated[
        int | None, "longer sides are cut down to this; such images become JPEGs, transparent ones PNGs"
    ] = None,
    quality: Annotated[int, "of the JPEGs that --max-side makes, 1 to 100"] = 90,
    seed: Annotated[int, "seed of the order in which images are spread over shards"] = 0,
    workers: Annotated[int | None, "processes; default: one per CPU"] = None,
) -> DatasetIndex:
    """Shards from a directory of class folders; classes are numbered in the order of their names.

    A run that was cut short goes on where it stopped. Files that cannot be read are left out, listed in
    `PREFIX-rejected.txt` and counted on standard error. Raises DataError if `src` is not such a directory, or `out`
    holds shards of the same prefix made of other files or with other settings.
    """
    if not 1 <= quality <= 100 or (max_side is not None and max_side < 1):
        raise DataError(f"max side {max_side}, quality {quality}: take a side above 0 and a quality of 1 to 100")
    if samples_per_shard < 1 or not re.fullmatch(r"[A-Za-z0-9_-]+", prefix):
        raise DataError(
            f"samples per shard {samples_per_shard} and prefix {prefix!r}: take a positive number, and a prefix of "
            "letters, digits, '_' and '-'"
        )
    classes = _classes(src)
    files, listing, passed_over = _list_files(src, classes)
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(files)).tolist()
    agree_on_plan(out, prefix, asdict(Plan(seed, samples_per_shard, len(files), listing, max_side, quality)))
    _agree_on_classes(out, classes)
    jobs = []
    for number, first in enumerate(range(0, len(files), samples_per_shard)):
        chosen = order[first : first + samples_per_shard]
        jobs.append((number, [(first + i, *files[row]) for i, row in enumerate(chosen)]))
    finished = _finished(out)
    missing = [job for job in jobs if shard_name(prefix, job[0]) not in finished]
    report = Rejections(out / f"{prefix}-rejected.txt")
    task = ShardTask(str(src), str(out), prefix, max_side, quality)
    for rejected in map_shards(task, missing, label=f"writing {prefix}", workers=workers):
        report.add(rejected)
    index = build_index(f"{out}/{prefix}-{{000000..{len(jobs) - 1:06d}}}.tar", classes=classes, workers=workers)
    if passed_over:
        print(f"{src}: {passed_over:,} files passed over, not named {', '.join(EXTENSIONS)}", file=sys.stderr)
    if index.num_samples < len(files):
        left_out = len(files) - index.num_samples
        print(f"{src}: {left_out:,} unreadable files left out; {report.path} names them", file=sys.stderr)
    return index


class Rejections:
    """The file that lists what was left out and why, kept over interrupted runs."""

    def __init__(self, path: Path):
        self.path = path
        lines = path.read_text(errors="surrogateescape").splitlines() if path.is_file() else []
        self.reasons = dict(line.split("\t", 1) for line in lines)

    def add(self, rejected: list[tuple[str, str]]) -> None:
        if rejected:
            self.reasons.update(rejected)
            text = "".join(f"{name}\t{reason}\n" for name, reason in sorted(self.reasons.items()))
            store.write_bytes(str(self.path), text.encode(errors="surrogateescape"))


def _classes(src: Path) -> list[str]:
    try:
        with os.scandir(src) as entries:
            classes = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"{src}: cannot be listed ({error.strerror}); --src is a folder of class folders") from None
    if not classes:
        raise DataError(f"{src}: holds no folders; --src is a folder with one folder of images per class")
    if set(classes) <= SPLITS:
        split = classes[0]
        raise DataError(f"{src}: holds splits, not classes; make each with --src {src / split} --prefix {split}")
    return classes


def _list_files(src: Path, classes: list[str]) -> tuple[list[tuple[str, int]], str, int]:
    """(path below src, class number) of every image, the listing's hash, and how many files are no images by name."""
    files, digest, passed_over = [], hashlib.sha256(), 0
    for label, name in enumerate(classes):
        for folder, subfolders, entries in os.walk(src / name, followlinks=True):
            subfolders.sort()
            for entry in sorted(entries):
                path = Path(folder, entry)
                if path.suffix.lower() not in EXTENSIONS:
                    passed_over += not entry.startswith(".")
                    continue
                below = path.relative_to(src).as_posix()
                size = path.stat().st_size if path.exists() else -1  # a dead link is reported when its turn comes
                digest.update(f"{below}\0{size}\n".encode(errors="surrogateescape"))
                files.append((below, label))
    if not files:
        raise DataError(f"{src}: holds no images; put {', '.join(EXTENSIONS)} files into its class folders")
    return files, digest.hexdigest(), passed_over


def _earlier_index(out: Path) -> DatasetIndex | None:
    path = out / INDEX_NAME
    return decode_index(path.read_bytes(), str(out)) if path.is_file() else None


def _agree_on_classes(out: Path, classes: list[str]) -> None:
    """Splits in one folder share one index, so they must share the numbering of classes, too."""
    index = _earlier_index(out)
    if index and index.classes is not None and index.classes != classes:
        differing = sorted(set(index.classes) ^ set(classes))[:3]
        raise DataError(f"{out}: its index has other classes ({', '.join(differing)} ...); choose another --out")


def _finished(out: Path) -> set[str]:
    """Shards are moved into place whole, so those that are there are finished, unless a size left the index since."""
    index = _earlier_index(out)
    indexed = dict(zip(index.names, index.sizes.tolist(), strict=True)) if index else {}
    return {name for name, (size, _) in store.list_sizes(str(out)).items() if size == indexed.get(name, size)}


def _key(position: int, name: str) -> str:
    """Unique by its number; the file's name stays readable, for whoever looks for a sample's origin."""
    return f"{position:08d}-{re.sub('[^A-Za-z0-9_-]', '_', Path(name).stem)[:LONGEST_STEM]}"
