"""Shards of a user's own images, in class folders or any others: shuffled once, files unchanged."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np

from pipeline.config.class_names import visible
from pipeline.errors import DataError
from pipeline.images.decode import BadImage
from pipeline.images.shrink import shrink
from pipeline.shards.build import build_index
from pipeline.shards.index import DatasetIndex
from pipeline.shards.make._files import (
    Rejections,
    earlier_index,
    finished_shards,
    image_fault,
    listing_hash,
    sample_key,
)
from pipeline.shards.make._folder_classes import LABELS, File, FolderLayout, sort_into_classes
from pipeline.shards.make._folder_table import import_table
from pipeline.shards.make._folder_tree import Tree, read_tree
from pipeline.shards.parallel import Workers, map_shards
from pipeline.shards.plan import agree_on_plan
from pipeline.shards.write import TarWriter, shard_name


@dataclass(frozen=True)
class FolderPlan:
    """The settings that determine the content of the shards."""

    seed: int
    samples_per_shard: int
    num_files: int
    listing_sha256: str  # of the path below `src` and the size of every file
    max_side: int | None
    quality: int


@dataclass(frozen=True)
class FolderShardWriter:
    """Writes one shard; returns the files that were left out, with the reason."""

    src: str
    out: str
    prefix: str
    max_side: int | None
    quality: int

    def __call__(self, job: tuple[int, list[tuple[int, str, int | None]]]) -> list[tuple[str, str]]:
        number, files = job
        rejected = []
        with TarWriter(Path(self.out) / shard_name(self.prefix, number)) as tar:
            for position, name, label in files:
                try:
                    data = Path(self.src, name).read_bytes()
                except OSError as error:
                    rejected.append((name, error.strerror or str(error)))
                    continue
                if fault := image_fault(data):
                    rejected.append((name, fault))
                    continue
                extension = Path(name).suffix.lower()[1:]
                if self.max_side is not None:
                    try:
                        extension, data = shrink(data, self.max_side, self.quality) or (extension, data)
                    except BadImage as bad:
                        rejected.append((name, str(bad)))
                        continue
                labels = {} if label is None else {"cls": str(label).encode()}
                tar.write(sample_key(position, name), {extension: data, **labels})
            tar.finish()
        return rejected


def make(
    out: Path,
    *,
    src: Annotated[Path, "folder with one folder of images per class, splits (train, val, ...) of them, or any images"],
    labels: Annotated[
        str, "where class names come from: top, the folders in --src or a split; path, all folders of an image; none"
    ] = "top",
    samples_per_shard: Annotated[int, "images per shard"] = 10_000,
    prefix: Annotated[
        str | None, "shards are named PREFIX-000000.tar and so on; default: train, or the split's name"
    ] = None,
    max_side: Annotated[
        int | None, "shrink images whose longer side exceeds this; they become JPEGs, or PNGs if transparent"
    ] = None,
    quality: Annotated[int, "quality of the JPEGs that --max-side makes, 1 to 100"] = 90,
    seed: Annotated[int, "seed for spreading images over shards"] = 0,
    workers: Workers = None,
) -> DatasetIndex:
    """Shards of images in class folders, with classes numbered in the order of their names, or of unlabelled images.

    All splits are made in one call and share the classes. A table shows what was imported and what was skipped: hidden
    and system files, links to parent folders, files of other types. An interrupted call resumes.
    Files that cannot be read are skipped and listed in `PREFIX-rejected.txt`. Raises DataError if `src` has no such
    layout or is ambiguous, if a class has no readable image, or if `out` has shards with the same prefix from
    other files or with other settings.
    """
    _check_settings(labels, samples_per_shard, prefix, max_side, quality)
    tree = read_tree(src, out)
    layout = sort_into_classes(tree, src, prefix, labels)
    _agree_on_classes(out, layout.classes)
    rejected = {}
    for split, files in layout.splits.items():
        listing = listing_hash((file.path, file.size) for file in files)
        plan = FolderPlan(seed, samples_per_shard, len(files), listing, max_side, quality)
        anew = agree_on_plan(out, split, asdict(plan) | ({} if labels == "top" else {"labels": labels}))
        report = Rejections(out / f"{split}-rejected.txt", anew=anew)
        task = FolderShardWriter(str(src), str(out), split, max_side, quality)
        rejected[split] = _write_shards(task, files, plan, report, workers)
    _check_classes(layout, rejected, src, out)
    index = _index(out, layout, samples_per_shard, workers)
    _report(src, out, layout, tree, rejected)
    return index


def _check_settings(
    labels: str, samples_per_shard: int, prefix: str | None, max_side: int | None, quality: int
) -> None:
    if not 1 <= quality <= 100 or (max_side is not None and max_side < 1):
        raise DataError(f"max side {max_side}, quality {quality}: expected a side above 0 and a quality of 1 to 100")
    if samples_per_shard < 1 or (prefix is not None and not re.fullmatch(r"[A-Za-z0-9_-]+", prefix)):
        raise DataError(
            f"samples per shard {samples_per_shard} and prefix {prefix!r}: expected a positive number, and a prefix "
            "of letters, digits, '_' and '-'"
        )
    if labels not in LABELS:
        raise DataError(f"labels {labels!r}: expected one of {', '.join(LABELS)}")


def _report(src: Path, out: Path, layout: FolderLayout, tree: Tree, rejected: Mapping[str, set[str]]) -> None:
    """Tells on standard error what was imported, what was not, and where the lists are."""
    print(f"{src}:\n{import_table(layout, tree, rejected)}", file=sys.stderr)
    for split, paths in rejected.items():
        if len(rejected) > 1:
            print(f"shards of {split}: {out}/{split}-*.tar", file=sys.stderr)
        if paths:
            print(f"unreadable images are listed in {out / f'{split}-rejected.txt'}", file=sys.stderr)


def _write_shards(
    task: FolderShardWriter, files: list[File], plan: FolderPlan, report: Rejections, workers: int | None
) -> set[str]:
    """Writes the missing shards of a split; returns the paths of all files that its shards leave out."""
    out = Path(task.out)
    order = np.random.Generator(np.random.PCG64(plan.seed)).permutation(len(files)).tolist()
    jobs = []
    for number, first in enumerate(range(0, len(files), plan.samples_per_shard)):
        chosen = order[first : first + plan.samples_per_shard]
        jobs.append((number, [(first + i, files[row].path, files[row].label) for i, row in enumerate(chosen)]))
    there = finished_shards(out)
    missing = [job for job in jobs if shard_name(task.prefix, job[0]) not in there]
    for rejected in map_shards(task, missing, label=f"writing {task.prefix}", workers=workers):
        report.add(rejected)
    return {file.path for file in files if visible(file.path) in report.reasons} if report.reasons else set()


def _index(out: Path, layout: FolderLayout, samples_per_shard: int, workers: int | None) -> DatasetIndex:
    """Indexes the shards of all splits."""
    if len(layout.splits) > 1:
        return build_index(str(out), classes=layout.classes or None, workers=workers)
    ((split, files),) = layout.splits.items()
    last = (len(files) - 1) // samples_per_shard
    return build_index(f"{out}/{split}-{{000000..{last:06d}}}.tar", classes=layout.classes or None, workers=workers)


def _check_classes(layout: FolderLayout, rejected: Mapping[str, set[str]], src: Path, out: Path) -> None:
    """Raises DataError if a split or a class has no readable image."""
    for split, files in layout.splits.items():
        if len(rejected[split]) == len(files):
            raise DataError(
                f"{src}: none of its images can be read; fix the problems listed in {out / f'{split}-rejected.txt'}"
            )
    found, taken = Counter[int](), Counter[int]()
    for split, files in layout.splits.items():
        found.update(file.label or 0 for file in files)
        taken.update(file.label or 0 for file in files if file.path not in rejected[split])
    for label, name in enumerate(layout.classes):
        if not taken[label]:
            reports = ", ".join(str(out / f"{split}-rejected.txt") for split, paths in rejected.items() if paths)
            raise DataError(
                f"{src}: none of the {found[label]:,} images of class {name!r} can be read; fix the problems listed "
                f"in {reports} or move the class out, and make the shards in another --out"
            )


def _agree_on_classes(out: Path, classes: list[str]) -> None:
    """Raises DataError for classes other than those of the index, which all splits in a folder share."""
    index = earlier_index(out)
    named = index.classes.get("class_id") if index else None
    if classes and named is not None and named != classes:
        differing = sorted(set(named) ^ set(classes))[:3]
        raise DataError(f"{out}: its index has other classes ({', '.join(differing)} ...); choose another --out")
