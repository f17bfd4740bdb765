"""What an import took and what it left out: checks that enough was taken, and a report by reason."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.config.class_names import visible
from pipeline.errors import DataError
from pipeline.shards.index_check import INDEX_NAME
from pipeline.shards.index_file import load_index
from pipeline.shards.make._files import Rejections, shortlist

MOST_REASONS = 20  # in one report


def refuse_missing(images: Path, missing: Sequence[str], count: int, most: float, whose: str) -> None:
    """Raises DataError if all of `count` named images are missing, or more than the share `most`."""
    if not count or len(missing) == count or len(missing) > most * count:
        raise DataError(
            f"{images}: missing {len(missing):,} of the {count:,} images {whose}, such as "
            f"{shortlist(list(missing)) or 'none'}; correct --images, or allow more with --most-missing"
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
            f"{out}: found shards whose {kind} classes are {shortlist(known)}, not {shortlist(names)}; give the same "
            f"{option}, or another --out"
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
    lines += [f"skipped: {count:,}: {why}: {shortlist(reasons[why])}" for why, count in common[:MOST_REASONS]]
    if len(common) > MOST_REASONS:
        lines.append(f"skipped: {sum(count for _, count in common[MOST_REASONS:]):,} for other reasons")
    lines += [f"they are listed in {report.path}" for report in reports if report.reasons]
    return "\n".join(map(visible, lines))
