"""A short table of what was taken from a folder, as which class, and what was not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping

from rich.cells import cell_len

from pipeline.config.class_names import visible
from pipeline.shards.make._files import shortlist
from pipeline.shards.make._folder_classes import File, FolderLayout
from pipeline.shards.make._folder_tree import Tree

MOST_ROWS = 12  # classes shown one by one


def import_table(layout: FolderLayout, tree: Tree, rejected: Mapping[str, set[str]]) -> str:
    """The table; `rejected` are the paths of unreadable images by split."""
    if not layout.classes:
        of_splits = [(split, *split_counts(files, rejected[split])) for split, files in layout.splits.items()]
        return "\n".join([*aligned([("images", "imported", "unreadable"), *of_splits]), *remarks(layout, tree)])
    rows = list(class_rows(layout, rejected))
    heads = ["class", *(list(layout.splits) if len(layout.splits) > 1 else ["imported"]), "unreadable"]
    if len(rows) > MOST_ROWS:
        half = MOST_ROWS // 2
        hidden = len(rows) - 2 * half
        rows = [*rows[:half], (f"... {hidden:,} more", *([""] * (len(heads) - 1))), *rows[-half:]]
    totals = [f"{sum(taken):,}" for taken in zip(*counts(layout, rejected), strict=True)]
    return "\n".join([*aligned([heads, *rows, ("total", *totals)]), *remarks(layout, tree)])


def split_counts(files: Collection[File], rejected: set[str]) -> tuple[str, str]:
    """Images of a split without labels: those taken, and those left out as unreadable."""
    left = sum(file.path in rejected for file in files)
    return f"{len(files) - left:,}", f"{left:,}"


def counts(layout: FolderLayout, rejected: Mapping[str, set[str]]) -> Iterator[list[int]]:
    """For each class: the images taken into each split, and those left out as unreadable."""
    taken = {split: Counter[int]() for split in layout.splits}
    left = Counter[int]()
    for split, files in layout.splits.items():
        for file in files:
            bad = file.path in rejected[split]
            taken[split][file.label or 0] += not bad
            left[file.label or 0] += bad
    for label in range(len(layout.classes)):
        yield [*(taken[split][label] for split in layout.splits), left[label]]


def class_rows(layout: FolderLayout, rejected: Mapping[str, set[str]]) -> Iterator[tuple[str, ...]]:
    for name, numbers in zip(layout.classes, counts(layout, rejected), strict=True):
        yield (name, *(f"{number:,}" for number in numbers))


def aligned(rows: Iterable[Iterable[str]]) -> Iterator[str]:
    """Lines with the first column left-aligned and the others right-aligned."""
    table = [list(row) for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(*table, strict=True)]
    for name, *numbers in table:
        cells = [number.rjust(width) for number, width in zip(numbers, widths[1:], strict=True)]
        yield "  ".join(["", name + " " * (widths[0] - cell_len(name)), *cells]).rstrip()


def remarks(layout: FolderLayout, tree: Tree) -> Iterator[str]:
    """Yields a line for each kind of thing that was not taken, or whose class is not obvious from its place."""
    if layout.unlabelled:
        number = quantity(len(layout.unlabelled), "image", "images")
        yield f"skipped: {number} outside class folders: {shortlist(layout.unlabelled)}"
    if tree.others:
        number = quantity(tree.others.total(), "file that is", "files that are")
        yield f"skipped: {number} not PNG, JPEG or WebP: {tally(tree.others)}"
    if layout.empty:
        number = quantity(len(layout.empty), "folder", "folders")
        yield f"skipped: {number} without images: {shortlist(layout.empty)}"
    if tree.system:
        number = quantity(tree.system.total(), "system file or folder", "system files and folders")
        yield f"skipped: {number}: {tally(tree.system)}"
    if tree.again:
        number = quantity(len(tree.again), "link to a folder that is", "links to folders that are")
        yield f"skipped: {number} read elsewhere: {shortlist(tree.again)}"
    if tree.output is not None:
        yield f"skipped: the output folder, {visible(tree.output)}"
    if layout.nested:
        yield f"subfolders count towards the class above them: {shortlist(layout.nested)}"
    if layout.spellings:
        yield f"one class, though spelt in two ways (Unicode NFC and NFD): {shortlist(layout.spellings)}"
    if any("\\x" in name for name in layout.classes):
        yield "bytes of names that are not UTF-8 are written \\xNN"


def quantity(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def tally(kinds: Counter[str]) -> str:
    return shortlist([f"{kind} {count:,}" for kind, count in kinds.most_common()])
