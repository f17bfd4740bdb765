from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from pipeline.errors import DataError
from pipeline.shards.make._folder_classes import File, FolderLayout, sort_into_classes
from pipeline.shards.make._folder_tree import Image, Tree

SRC = Path("photos")
COMPOSED, DECOMPOSED = "dög", unicodedata.normalize("NFD", "dög")


def tree(*names: str, empty: tuple[str, ...] = ()) -> Tree:
    """As `read_tree` would find these images."""
    found = Tree()
    for name in names:
        if "/" in name:
            found.images.setdefault(name.partition("/")[0], []).append(Image(name, 1))
        else:
            found.loose.append(Image(name, 1))
    found.images |= {name: [] for name in empty if "/" not in name}
    images = [image.path for images in found.images.values() for image in images]
    found.folders = sorted({name.rpartition("/")[0] for name in images} | {*found.images, *empty})
    return found


def labels(layout: FolderLayout) -> dict[str, list[tuple[str, str]]]:
    """By split: path and class of each image."""
    return {
        split: [(file.path, layout.classes[file.label]) for file in files] for split, files in layout.splits.items()
    }


def test_folders_are_classes_in_the_order_of_their_names() -> None:
    layout = sort_into_classes(tree("ox/1.png", "cat/2.png", "cat/deep/3.png", "4.png", empty=("notes",)), SRC, None)
    assert layout.classes == ["cat", "ox"]
    assert labels(layout) == {"train": [("cat/2.png", "cat"), ("cat/deep/3.png", "cat"), ("ox/1.png", "ox")]}
    assert (layout.unlabelled, layout.empty, layout.nested) == (["4.png"], ["notes"], ["cat/deep"])
    assert list(sort_into_classes(tree("a/1.png", "b/1.png"), SRC, "Mine").splits) == ["Mine"]


def test_splits_above_the_classes() -> None:
    names = ("Train/a/1.png", "Train/b/1.png", "val/b/2.png", "test/3.png")
    layout = sort_into_classes(tree(*names, empty=("notes", "Train/yak")), SRC, None)
    assert layout.empty == ["Train/yak", "notes"]
    assert labels(layout) == {"train": [("Train/a/1.png", "a"), ("Train/b/1.png", "b")], "val": [("val/b/2.png", "b")]}
    assert layout.unlabelled == ["test/3.png"]


def test_spellings_of_two_words_are_two_classes() -> None:
    assert sort_into_classes(tree("Maße/1.png", "Masse/1.png"), SRC, None).classes == ["Masse", "Maße"]


def test_a_class_may_be_called_train() -> None:
    assert sort_into_classes(tree("train/1.png", "plane/1.png"), SRC, "Mine").classes == ["plane", "train"]


def test_two_spellings_of_unicode_are_one_class() -> None:
    layout = sort_into_classes(tree(f"{COMPOSED}/1.png", f"{DECOMPOSED}/2.png", "cat/3.png"), SRC, None)
    assert (layout.classes, layout.spellings) == (["cat", COMPOSED], [COMPOSED])
    assert [file.label for file in layout.splits["train"]] == [0, 1, 1]
    layout = sort_into_classes(tree(f"train/{COMPOSED}/1.png", "train/cat/1.png", f"val/{DECOMPOSED}/2.png"), SRC, None)
    assert (layout.classes, layout.spellings) == (["cat", COMPOSED], [])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["wrapped/cat/1.png", "wrapped/dog/1.png"], "one class folder, 'wrapped'; use --src photos/wrapped"),
        (["a/b/cat/1.png", "a/b/dog/1.png"], "one class folder, 'a'; use --src photos/a/b"),
        (["a/train/cat/1.png", "a/val/cat/1.png"], "one class folder, 'a'; use --src photos/a"),
        (["cat/1.png"], "one class folder, 'cat'; put a folder of images for each other class next to it"),
        (["cat/deep/1.png"], "put a folder of images for each other class next to it"),
        (["train/cat/1.png", "val/cat/1.png"], "one class folder, 'train/cat'"),
        (
            ["1.png", "2.png", "3.png", "a/1.png", "b/1.png"],
            r"3 images outside class folders but only 2 inside \(a, b\)",
        ),
        (["1.png", "2.png"], "found images but no class folders"),
        (["Cat/1.png", "cat/1.png"], "'Cat' and 'cat' only differ in case or white space"),
        (["train/a/1.png", "train/b/1.png", "val/A/1.png"], "'a' and 'A' only differ in case"),
        (["cat /1.png", "cat/1.png"], "only differ in case or white space"),
        (["caf\udce9/1.png", r"caf\xe9/1.png"], "only differ in case or white space"),
        (["Train/a/1.png", "train/a/1.png"], r"two of its splits \(Train, train\) only differ in case"),
        (["train/a/1.png", "val/a/1.png", "extra/1.png"], "found the splits train, val next to 'extra'; move"),
        (["train/1.png", "test/2.png"], r"its splits \(train, test\) have images but no class folders"),
        (["train/a/1.png", "train/b/1.png", "val/c/1.png"], "photos/val/c: photos/train has no class 'c'"),
        (
            ["animals/cat/1.png", "cat/1.png"],
            "photos/animals/cat: .* class 'animals', but 'cat' is also a class; move it",
        ),
        (["cat/train/1.png", "cat/val/1.png", "dog/train/1.png"], "photos/cat: found the splits train, val, .* mixed"),
        ([], "found no folders"),
    ],
)
def test_what_has_two_meanings_is_refused(names: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        sort_into_classes(tree(*names), SRC, None)


def test_folders_of_other_files_are_named_by_what_they_hold() -> None:
    found = tree(empty=("cat", "dog"))
    found.others.update({".heic": 20, ".txt": 1})
    with pytest.raises(DataError, match=r"found no images; .* \(found 20 .heic, 1 .txt\)"):
        sort_into_classes(found, SRC, None)


def test_splits_name_their_shards() -> None:
    with pytest.raises(DataError, match="--prefix mine does not apply; leave it out, or make one split with --src"):
        sort_into_classes(tree("train/a/1.png", "train/b/1.png"), SRC, "mine")


def test_whole_paths_name_classes_of_nested_folders() -> None:
    names = ("bird/owl/1.png", "bird/owl/2.png", "bird/ox/3.png", "ox/4.png", "5.png")
    layout = sort_into_classes(tree(*names, empty=("notes",)), SRC, None, "path")
    assert layout.classes == ["bird/owl", "bird/ox", "ox"]
    assert [file.label for file in layout.splits["train"]] == [0, 0, 1, 2]
    assert (layout.unlabelled, layout.nested) == (["5.png"], [])
    layout = sort_into_classes(tree("train/bird/owl/1.png", "train/ox/2.png", "val/bird/owl/3.png"), SRC, None, "path")
    assert labels(layout)["val"] == [("val/bird/owl/3.png", "bird/owl")]
    with pytest.raises(DataError, match="photos/train has no class 'bird/elk'"):
        sort_into_classes(tree("train/bird/owl/1.png", "train/ox/2.png", "val/bird/elk/3.png"), SRC, None, "path")


def test_without_labels_images_of_any_depth_are_taken() -> None:
    layout = sort_into_classes(tree("1.png", "a/2.png", "a/b/c/3.png"), SRC, None, "none")
    assert layout.classes == []
    assert layout.splits == {"train": [File("1.png", None, 1), File("a/2.png", None, 1), File("a/b/c/3.png", None, 1)]}
    layout = sort_into_classes(tree("Train/1.png", "Train/a/2.png", "val/3.png"), SRC, None, "none")
    assert {split: [file.path for file in files] for split, files in layout.splits.items()} == {
        "train": ["Train/1.png", "Train/a/2.png"],
        "val": ["val/3.png"],
    }
    assert list(sort_into_classes(tree("1.png"), SRC, "Mine", "none").splits) == ["Mine"]
    with pytest.raises(DataError, match=r"photos: found no images; put \.png"):
        sort_into_classes(tree(empty=("a",)), SRC, None, "none")


def test_images_without_classes_can_be_taken_without_labels() -> None:
    for names in (("1.png",), ("train/1.png", "val/2.png"), ("1.png", "2.png", "3.png", "a/1.png", "b/1.png")):
        with pytest.raises(DataError, match="without labels, with --labels none"):
            sort_into_classes(tree(*names), SRC, None)
