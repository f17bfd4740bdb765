"""Writes shards from a list of a user's files: shuffled once, in parallel processes, resuming after interruptions."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from pipeline.config.class_names import visible
from pipeline.errors import DataError
from pipeline.images.decode import BadImage, Header, read_header
from pipeline.shards.index import INDEX_NAME, load_index
from pipeline.shards.make._files import Rejections, finished, image_fault, sample_key
from pipeline.shards.make._folder_classes import some
from pipeline.shards.parallel import map_shards
from pipeline.shards.plan import agree_on_plan
from pipeline.shards.write import TarWriter, shard_name

T = TypeVar("T")

PREFIX = re.compile(r"[A-Za-z0-9_-]+")
VAL = "val"
MOST_REASONS = 20  # in one report


class Rejected(Exception):
    """Why a file is left out."""

    def __init__(self, path: str, reason: str):
        super().__init__(reason)
        self.path = path


class NewSample(NamedTuple):
    """A sample to be written, from a user's files: a readable name, and bytes by extension."""

    name: str
    members: Mapping[str, bytes]


@dataclass(frozen=True)
class WriteOptions:
    """Settings that all makers of this kind share. Raises DataError for invalid ones."""

    prefix: str
    samples_per_shard: int
    seed: int
    val: str | None
    workers: int | None

    def __post_init__(self) -> None:
        if self.samples_per_shard < 1 or not PREFIX.fullmatch(self.prefix):
            raise DataError(
                f"samples per shard {self.samples_per_shard} and prefix {self.prefix!r}: expected a positive number, "
                "and a prefix of letters, digits, '_' and '-'"
            )


@dataclass(frozen=True)
class SampleShardWriter(Generic[T]):
    """Writes one shard; returns the files that were left out, with the reason."""

    out: Path
    prefix: str
    read: Callable[[T], NewSample]  # raises Rejected; DataError for faults beyond a single bad file

    def __call__(self, job: tuple[int, int, list[T]]) -> list[tuple[str, str]]:
        number, first, items = job
        rejected = []
        with TarWriter(self.out / shard_name(self.prefix, number)) as tar:
            for position, item in enumerate(items, first):
                try:
                    sample = self.read(item)
                except Rejected as reason:
                    rejected.append((reason.path, str(reason)))
                    continue
                tar.write(sample_key(position, sample.name), sample.members)
            tar.finish()
        return rejected


def write_samples(
    out: Path,
    prefix: str,
    items: Sequence[T],
    read: Callable[[T], NewSample],
    plan: Mapping[str, Any],
    options: WriteOptions,
) -> Rejections:
    """Writes the missing shards of `PREFIX-*.tar`; returns what all of them left out.

    `read` runs on each item in a worker process. `plan` determines their content together with `options`.
    """
    settings = {"seed": options.seed, "samples_per_shard": options.samples_per_shard, "num_files": len(items), **plan}
    report = Rejections(out / f"{prefix}-rejected.txt", anew=agree_on_plan(out, prefix, settings))
    order = np.random.Generator(np.random.PCG64(options.seed)).permutation(len(items)).tolist()
    there, jobs = finished(out), []
    for number, first in enumerate(range(0, len(items), options.samples_per_shard)):
        if shard_name(prefix, number) not in there:
            jobs.append((number, first, [items[row] for row in order[first : first + options.samples_per_shard]]))
    for rejected in map_shards(
        SampleShardWriter(out, prefix, read), jobs, label=f"writing {prefix}", workers=options.workers
    ):
        report.add(rejected)
    return report


def split_rows(names: Sequence[str], options: WriteOptions) -> dict[str, list[int]]:
    """Rows by the prefix of their shards: `options.val`, a share or a file of names, selects those in `val`.

    A share is drawn by hashing the seed and each name. A file names images with or without folders and suffix, one per
    line. Raises DataError for a share or file that leaves either side empty.
    """
    if options.val is None:
        return {options.prefix: list(range(len(names)))}
    if options.prefix == VAL:
        raise DataError(f"--val {options.val}: its images go to {VAL}-*.tar, so --prefix must be another name")
    chosen = (
        _share(names, float(options.val), options.seed) if _is_number(options.val) else _named(names, Path(options.val))
    )
    if not 0 < len(chosen) < len(names):
        raise DataError(
            f"--val {options.val}: would take {len(chosen):,} of {len(names):,} images; leave some for both splits"
        )
    return {options.prefix: [row for row in range(len(names)) if row not in chosen], VAL: sorted(chosen)}


def _is_number(text: str) -> bool:
    try:
        return 0 < float(text) < 1
    except ValueError:
        return False


def _share(names: Sequence[str], share: float, seed: int) -> set[int]:
    def draw(row: int) -> bytes:
        return hashlib.sha256(f"{seed}\0{names[row]}".encode(errors="surrogateescape")).digest()

    return set(sorted(range(len(names)), key=draw)[: round(share * len(names))])


def _named(names: Sequence[str], path: Path) -> set[int]:
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--val {path}: neither a share between 0 and 1 nor a readable file ({error})") from None
    wanted = {spelling for line in lines if line.strip() for spelling in (line.strip(),)}
    known: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        for spelling in {name, stem(name), name.rpartition("/")[2], stem(name.rpartition("/")[2])}:
            known.setdefault(spelling, []).append(row)
    unknown = sorted(name for name in wanted if name not in known and stem(name) not in known)
    if unknown:
        raise DataError(f"--val {path}: lists {some(unknown)}, which are not among the images; correct the names")
    return {row for name in wanted for row in known.get(name, known.get(stem(name), []))}


def stem(path: str) -> str:
    """A path without its suffix."""
    folder, slash, base = path.rpartition("/")
    return folder + slash + (base.rpartition(".")[0] or base)


def digest_of(parts: Iterable[bytes]) -> str:
    """SHA-256 of the parts, in order."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()


def read_image(path: Path, name: str) -> tuple[bytes, Header]:
    """An image's bytes and header. Raises Rejected under `name`."""
    data = read_file(path, name)
    if fault := image_fault(data):
        raise Rejected(name, fault)
    try:
        return data, read_header(data)
    except BadImage as bad:
        raise Rejected(name, str(bad)) from None


def read_file(path: Path, name: str) -> bytes:
    """A file's bytes. Raises Rejected under `name`."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise Rejected(name, error.strerror or str(error)) from None


def check_annotated_size(name: str, annotated: tuple[int, int], found: tuple[int, int]) -> None:
    """Raises Rejected if the annotated (height, width) differs from that of the image; zeros mean unknown."""
    if all(annotated) and annotated != found:
        turned = "; annotations are for the image as its EXIF data rotate it" if annotated == found[::-1] else ""
        raise Rejected(
            name,
            f"the annotations are for {annotated[1]} x {annotated[0]} pixels, "
            f"but the image has {found[1]} x {found[0]}{turned}",
        )


def refuse_missing(images: Path, missing: Sequence[str], count: int, most: float, whose: str) -> None:
    """Raises DataError if all of `count` named images are missing, or more than the share `most`."""
    if not count or len(missing) == count or len(missing) > most * count:
        raise DataError(
            f"{images}: missing {len(missing):,} of the {count:,} images {whose}, such as "
            f"{some(list(missing)) or 'none'}; correct --images, or allow more with --most-missing"
        )


def check_taken(source: Path, count: int, reports: Sequence[Rejections]) -> int:
    """How many of `count` items are in the shards. Raises DataError if none is."""
    left = sum(len(report.reasons) for report in reports)
    if left >= count:
        raise DataError(
            f"{source}: none of the {count:,} images can be used; fix the problems listed in {reports[0].path}"
        )
    return count - left


def refuse_other_classes(out: Path, kind: str, names: list[str], option: str = "--classes") -> None:
    """Raises DataError if shards in `out` have labels of other classes: one index names the classes of all."""
    if not (out / INDEX_NAME).is_file():
        return
    known = load_index(str(out), check=False).classes.get(kind)
    if known is not None and known != names:
        raise DataError(
            f"{out}: found shards whose {kind} classes are {some(known)}, not {some(names)}; give the same {option}, "
            "or another --out"
        )


def import_report(title: str, left_out: Mapping[str, Sequence[str]], reports: Sequence[Rejections]) -> str:
    """A report: what was taken, and what was not, by reason with the first examples.

    `left_out` are names by the reason they are not taken; the files that `reports` list are added to them.
    """
    reasons: dict[str, list[str]] = {why: list(names) for why, names in left_out.items() if names}
    for report in reports:
        for name, reason in report.reasons.items():
            reasons.setdefault(re.sub(r"\d+", "N", reason), []).append(name)
    lines = [title]
    common = Counter({why: len(names) for why, names in reasons.items()}).most_common()
    lines += [f"skipped: {count:,}: {why}: {some(reasons[why])}" for why, count in common[:MOST_REASONS]]
    if len(common) > MOST_REASONS:
        lines.append(f"skipped: {sum(count for _, count in common[MOST_REASONS:]):,} for other reasons")
    lines += [f"they are listed in {report.path}" for report in reports if report.reasons]
    return "\n".join(map(visible, lines))
