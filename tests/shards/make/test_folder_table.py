from __future__ import annotations

from collections import Counter

from pipeline.shards.make._folder_classes import File, FolderLayout
from pipeline.shards.make._folder_table import import_table
from pipeline.shards.make._folder_tree import Tree


def layout(classes: list[str], **splits: list[int]) -> FolderLayout:
    """So many images of each class in each split."""
    files = {
        split: [File(f"{classes[label]}/{i}", label, 1) for label, count in enumerate(counts) for i in range(count)]
        for split, counts in splits.items()
    }
    return FolderLayout(classes, files)


def test_wide_letters_stand_in_columns() -> None:
    text = import_table(layout(["日本", "cat"], train=[1, 1200]), Tree(), {"train": {"cat/0", "cat/1"}})
    assert text.splitlines() == [
        "  class  imported  unreadable",
        "  日本          1           0",
        "  cat       1,198           2",
        "  total     1,199           2",
    ]


def test_many_classes_are_few_lines_with_the_totals_of_all() -> None:
    names = [f"class {number:04d}" for number in range(1000)]
    lines = import_table(
        layout(names, train=[2] * 1000, val=[1] * 1000), Tree(), {"train": set(), "val": set()}
    ).splitlines()
    assert len(lines) == 15
    assert [line.split()[0:3] for line in lines[6:9]] == [
        ["class", "0005", "2"],
        ["...", "988", "more"],
        ["class", "0994", "2"],
    ]
    assert lines[-1].split() == ["total", "2,000", "1,000", "0"]


def test_each_kind_of_thing_left_out_has_a_line() -> None:
    tree = Tree(
        others=Counter({".heic": 30, ".gif": 3, ".txt": 2, ".md": 1}),
        system=Counter({".DS_Store": 2}),
        again=["cat/all"],
        output="shards",
    )
    found = layout(["cat", r"caf\xe9"], train=[1, 1])
    found.unlabelled += ["a.png", "b\udcfc.png", "c.png", "d.png"]
    found.empty += ["notes"]
    found.nested += ["cat/deep"]
    found.spellings += ["cat"]
    assert import_table(found, tree, {"train": set()}).splitlines()[4:] == [
        r"skipped: 4 images outside class folders: a.png, b\xfc.png, c.png, ... 1 more",
        "skipped: 36 files that are not PNG, JPEG or WebP: .heic 30, .gif 3, .txt 2, ... 1 more",
        "skipped: 1 folder without images: notes",
        "skipped: 2 system files and folders: .DS_Store 2",
        "skipped: 1 link to a folder that is read elsewhere: cat/all",
        "skipped: the output folder, shards",
        "subfolders count towards the class above them: cat/deep",
        "one class, though spelt in two ways (Unicode NFC and NFD): cat",
        r"bytes of names that are not UTF-8 are written \xNN",
    ]


def test_without_labels_splits_are_counted() -> None:
    splits = {"train": [File(f"{i}", None, 1) for i in range(1200)], "val": [File("a", None, 1)]}
    assert import_table(FolderLayout([], splits), Tree(), {"train": {"3"}, "val": set()}).splitlines() == [
        "  images  imported  unreadable",
        "  train      1,199           1",
        "  val            1           0",
    ]
