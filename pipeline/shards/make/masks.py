"""A user's own images and class maps, as of VOC, ADE20K or Cityscapes: pairs of files become samples of shards."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np

from pipeline.config.class_names import visible
from pipeline.errors import DataError
from pipeline.images.class_map import decode_class_map, read_map_header
from pipeline.images.decode import BadImage, read_header
from pipeline.shards.build import build_index
from pipeline.shards.class_file import read_class_names
from pipeline.shards.index import INDEX_NAME, DatasetIndex, load_index
from pipeline.shards.make._files import Rejections, finished, image_fault, listing_hash, sample_key
from pipeline.shards.make._folder_classes import some
from pipeline.shards.make._folder_tree import read_tree
from pipeline.shards.make._mask_ids import Ids, ids_of
from pipeline.shards.make._mask_pairs import Pair, Pairing, pair_up
from pipeline.shards.parallel import map_shards
from pipeline.shards.plan import agree_on_plan
from pipeline.shards.write import TarWriter, shard_name
from pipeline.targets.base import BadLabel
from pipeline.targets.mask import check_size

MEMBER = "seg.png"
# Rows as they are pack class maps as well as any filter, and are decoded fastest.
PNG_OPTIONS = [cv2.IMWRITE_PNG_COMPRESSION, 9, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE]


@dataclass(frozen=True)
class Plan:
    """What decides the content of the shards."""

    seed: int
    samples_per_shard: int
    num_files: int
    listing_sha256: str  # of every pair's paths and bytes
    ignore: int | None
    remap: str | None
    small_ids: bool  # ignored pixels are 255


@dataclass(frozen=True)
class ShardTask:
    """Write one shard; gives the pairs that were left out, by their mask or image, with the reason.

    Raises DataError, and writes nothing, where masks hold ids that no class has.
    """

    images: Path
    masks: Path
    out: Path
    prefix: str
    ids: Ids

    def __call__(self, job: tuple[int, int, list[Pair]]) -> list[tuple[str, str]]:
        number, first, pairs = job
        rejected = []
        outside: dict[int, str] = {}
        with TarWriter(self.out / shard_name(self.prefix, number)) as tar:
            for position, pair in enumerate(pairs, first):
                try:
                    image, mask = self.read(pair, outside)
                except Rejected as reason:
                    rejected.append((reason.path, str(reason)))
                    continue
                extension = Path(pair.image).suffix.lower()[1:]
                tar.write(sample_key(position, pair.image), {extension: image, MEMBER: mask})
            if outside:
                raise self.without_class(outside)
            tar.finish()
        return rejected

    def read(self, pair: Pair, outside: dict[int, str]) -> tuple[bytes, bytes]:
        """Both files, ids replaced; notes in `outside` which mask has ids of no class. Raises Rejected."""
        image, mask = (self.bytes_of(folder, path) for folder, path in self.files(pair))
        if fault := image_fault(image):
            raise Rejected(pair.image, fault)
        try:
            header = read_header(image)
        except BadImage as bad:
            raise Rejected(pair.image, str(bad)) from None
        try:
            check_size(read_map_header(mask).size, (header.height, header.width))
            ids = decode_class_map(mask)
        except (BadImage, BadLabel) as bad:
            raise Rejected(pair.mask, str(bad)) from None
        for one in self.ids.outside(ids):
            outside.setdefault(one, pair.mask)
        if (stored := self.ids.stored(ids)) is not None:
            mask = cv2.imencode(".png", stored, PNG_OPTIONS)[1].tobytes()
        return image, mask

    def files(self, pair: Pair) -> tuple[tuple[Path, str], tuple[Path, str]]:
        return (self.images, pair.image), (self.masks, pair.mask)

    def bytes_of(self, folder: Path, path: str) -> bytes:
        try:
            return (folder / path).read_bytes()
        except OSError as error:
            raise Rejected(path, error.strerror or str(error)) from None

    def without_class(self, outside: Mapping[int, str]) -> DataError:
        ids, count = sorted(outside), self.ids.num_classes
        return DataError(
            f"{self.masks / visible(outside[ids[0]])}: has the id {some(list(map(str, ids)))}, but --classes names "
            f"{count}, 0 to {count - 1}; name all classes, or take those alone by --remap 0-{count - 1}=0"
        )


class Rejected(Exception):
    """Why a file is left out."""

    def __init__(self, path: str, reason: str):
        super().__init__(reason)
        self.path = path


def make(
    out: Path,
    *,
    images: Annotated[Path, "folder of the images, at any depth"],
    masks: Annotated[Path, "folder of PNGs as large as the images, whose palette indices or grey values are class ids"],
    classes: Annotated[str, "class names from id 0 on: a file with one name a line, or a,b,c"],
    ignore: Annotated[int | None, "id of pixels without a class; default: 255, or 65535 for more than 255"] = None,
    remap: Annotated[
        str | None, "class of each id, others are ignored: OLD=NEW,FIRST-LAST=NEW,OLD=ignore or a file with them"
    ] = None,
    image_suffix: Annotated[str | None, "how names of images end behind what they share with masks"] = None,
    mask_suffix: Annotated[str, "how names of masks end, such as _gtFine_labelIds.png"] = ".png",
    only: Annotated[Path | None, "text file that names the pairs to take, one a line, such as VOC's train.txt"] = None,
    samples_per_shard: Annotated[int, "images in each shard"] = 1_000,
    prefix: Annotated[str, "shards are PREFIX-000000.tar, ...: make each split by its own"] = "train",
    seed: Annotated[int, "seed of the order in which images are spread over shards"] = 0,
    workers: Annotated[int | None, "processes; default: one per CPU"] = None,
) -> DatasetIndex:
    """Shards of images and class maps that lie in two folders under the same names.

    Image files stay as they are, and masks whose ids do; ignored pixels become 255 (65535 for more than 255 classes).
    Skipped files are reported with the reason; unreadable files and masks of the wrong size are listed in
    `PREFIX-rejected.txt`. An interrupted run resumes. Raises DataError where no mask fits an image, a mask has
    ids without a class, or `out` holds shards of the same prefix made of other files or with other settings.
    """
    if samples_per_shard < 1 or not re.fullmatch(r"[A-Za-z0-9_-]+", prefix):
        raise DataError(
            f"samples per shard {samples_per_shard} and prefix {prefix!r}: take a positive number, and a prefix of "
            "letters, digits, '_' and '-'"
        )
    names = read_class_names(classes)
    refuse_other_classes(out, names)
    ids = ids_of(len(names), ignore, remap)
    image_tree = read_tree(images, out, "--images is a folder of images")
    mask_tree = read_tree(masks, out, "--masks is a folder of PNGs")
    pairing = pair_up(image_tree.all_images(), mask_tree.all_images(), (image_suffix, mask_suffix), only)
    files = [(f"{pair.image}\0{pair.mask}", pair.size) for pair in pairing.pairs]
    small_ids = ids.ignore == 255
    plan = Plan(seed, samples_per_shard, len(files), listing_hash(files), ignore, remap, small_ids)
    report = Rejections(out / f"{prefix}-rejected.txt", anew=agree_on_plan(out, prefix, asdict(plan)))
    _write_shards(ShardTask(images, masks, out, prefix, ids), pairing.pairs, plan, report, workers)
    rejected = _rejected(pairing, report)
    if len(rejected) == len(files):
        raise DataError(f"{images}: none of the {len(files):,} pairs can be used, as {report.path} says; fix them")
    index = build_index(str(out), classes={"mask": names}, workers=workers)
    print("\n".join(summary(images, pairing, rejected, report)), file=sys.stderr)
    if not small_ids:
        print(f"ignored pixels hold {ids.ignore}: set `ignore: {ids.ignore}` of the data set's mask", file=sys.stderr)
    return index


def refuse_other_classes(out: Path, names: list[str]) -> None:
    """Raise DataError where shards in `out` have masks of other classes: one index names the classes of all."""
    if not (out / INDEX_NAME).is_file():
        return
    known = load_index(str(out), check=False).classes.get("mask")
    if known is not None and known != names:
        raise DataError(
            f"{out}: holds shards whose masks have the classes {some(known)}, not {some(names)}; give the same "
            "--classes, or another --out"
        )


def _write_shards(task: ShardTask, pairs: list[Pair], plan: Plan, report: Rejections, workers: int | None) -> None:
    """Write the shards that are missing."""
    order = np.random.Generator(np.random.PCG64(plan.seed)).permutation(len(pairs)).tolist()
    there = finished(task.out)
    jobs = []
    for number, first in enumerate(range(0, len(pairs), plan.samples_per_shard)):
        if shard_name(task.prefix, number) not in there:
            chosen = order[first : first + plan.samples_per_shard]
            jobs.append((number, first, [pairs[row] for row in chosen]))
    for rejected in map_shards(task, jobs, label=f"writing {task.prefix}", workers=workers):
        report.add(rejected)


def _rejected(pairing: Pairing, report: Rejections) -> list[str]:
    """The reason of each pair that is left out."""
    reasons = (
        report.reasons.get(visible(pair.image), report.reasons.get(visible(pair.mask))) for pair in pairing.pairs
    )
    return [reason for reason in reasons if reason is not None]


def summary(images: Path, pairing: Pairing, rejected: list[str], report: Rejections) -> list[str]:
    """Lines: what was taken, and what was not and why."""
    lines = [f"{images}: {len(pairing.pairs) - len(rejected):,} images with masks taken"]
    lines += [f"not taken: {len(paths):,} {why}: {some(paths)}" for why, paths in pairing.left_out.items()]
    kinds = Counter(re.sub(r"\d+", "N", reason) for reason in rejected)
    lines += [f"not taken: {count:,} pairs: {reason}" for reason, count in kinds.most_common()]
    if rejected:
        lines.append(f"they are named in {report.path}")
    return lines
