from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import DataError
from pipeline.shards.make._folder_tree import Image, read_tree

Touch = Callable[..., None]


@pytest.fixture
def touch(tmp_path: Path) -> Touch:
    """Files of one byte below the source."""

    def write(*names: str) -> None:
        for name in names:
            path = tmp_path / "src" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x")

    return write


def paths(folder: Path, out: Path | None = None) -> dict[str, list[str]]:
    tree = read_tree(folder, out or folder.parent / "out")
    return {top: [image.path for image in images] for top, images in tree.images.items()}


def test_images_by_folder_and_all_else_counted(tmp_path: Path, touch: Touch) -> None:
    touch("cat/b.png", "cat/a.JPG", "cat/deep/er/c.webp", "cat/deep/d.jpeg", "dog/x.heic", "dog/README", "e.png")
    touch("__MACOSX/cat/._a.JPG", "cat/._a.JPG", "cat/.DS_Store", "dog/Thumbs.db", ".ipynb_checkpoints/cat/a.png")
    touch("cat/@eaDir/a.png", "$RECYCLE.BIN/a.png", "System Volume Information/a.png", "lost+found/a.png")
    os.mkfifo(tmp_path / "src" / "cat" / "pipe.png")  # to read it would take for ever
    tree = read_tree(tmp_path / "src", tmp_path / "out")
    assert tree.images == {
        "cat": [Image(f"cat/{name}", 1) for name in ("a.JPG", "b.png", "deep/d.jpeg", "deep/er/c.webp")],
        "dog": [],
    }
    assert tree.folders == ["cat", "dog", "cat/deep", "cat/deep/er"]
    assert tree.loose == [Image("e.png", 1)]
    assert tree.others == {".heic": 1, "without extension": 1, ".png": 1}
    assert tree.system == {
        "__MACOSX": 1,
        "._*": 1,
        ".DS_Store": 1,
        "Thumbs.db": 1,
        ".ipynb_checkpoints": 1,
        "@eaDir": 1,
        "$RECYCLE.BIN": 1,
        "System Volume Information": 1,
        "lost+found": 1,
    }


def test_links_lead_outwards_and_never_in_circles(tmp_path: Path, touch: Touch) -> None:
    touch("cat/1.png", "dog/1.png", "dog/more/2.png", "../pool/birds/1.png", "../pool/birds/2.png")
    links = {
        "cat/all": "..",  # the folder of all classes
        "cat/first": "../dog",  # comes before the real one, and is another class
        "cat/here": ".",
        "dog/here": "here",  # a link to itself
        "ancestor": "../..",
        "birds": "../pool/birds",
        "birds-again": "../pool/birds",
    }
    for name, target in links.items():
        (tmp_path / "src" / name).symlink_to(target)
    tree = read_tree(tmp_path / "src", tmp_path / "out")
    found = {top: [image.path for image in images] for top, images in tree.images.items()}
    assert found == {
        "cat": ["cat/1.png"],
        "dog": ["dog/1.png", "dog/more/2.png"],
        "birds": ["birds/1.png", "birds/2.png"],
    }
    assert tree.again == ["ancestor", "birds-again", "cat/all", "cat/first", "cat/here"]


def test_linked_folders_within_a_class_and_linked_files(tmp_path: Path, touch: Touch) -> None:
    touch("cat/1.png", "../more/2.png", "../more/deep/3.png")
    (tmp_path / "src" / "cat" / "0").symlink_to("../../more")
    (tmp_path / "src" / "cat" / "9.png").symlink_to("../../more/2.png")
    (tmp_path / "src" / "cat" / "dead.png").symlink_to("nowhere")
    tree = read_tree(tmp_path / "src", tmp_path / "out")
    assert [tuple(image) for image in tree.images["cat"]] == [
        ("cat/1.png", 1),
        ("cat/9.png", 1),
        ("cat/dead.png", -1),
        ("cat/0/2.png", 1),
        ("cat/0/deep/3.png", 1),
    ]


@pytest.mark.parametrize("place", ["shards", "cat/shards"])
def test_the_output_folder_is_not_part_of_the_source(tmp_path: Path, touch: Touch, place: str) -> None:
    touch("cat/1.png", "dog/1.png", f"{place}/train-000000.tar", f"{place}/preview.png")
    src = tmp_path / "src"
    assert paths(src, src / place) == {"cat": ["cat/1.png"], "dog": ["dog/1.png"]}
    assert read_tree(src, src / place).output == place


def test_a_source_within_the_output_folder_is_fine(tmp_path: Path, touch: Touch) -> None:
    touch("cat/1.png")
    assert paths(tmp_path / "src", tmp_path) == {"cat": ["cat/1.png"]}


def test_an_output_folder_of_images_is_refused(tmp_path: Path, touch: Touch) -> None:
    touch("cat/1.png", "dog/1.png")
    with pytest.raises(DataError, match="is --out, but holds images of --src"):
        read_tree(tmp_path / "src", tmp_path / "src" / "cat")


def test_source_and_output_are_two_folders(tmp_path: Path, touch: Touch) -> None:
    touch("cat/1.png")
    with pytest.raises(DataError, match="given as both --src and --out"):
        read_tree(tmp_path / "src", tmp_path / "src" / "cat" / "..")


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path: Path, touch: Touch) -> None:
    """Its path is too long for the system, which holds for root as well, unlike permissions."""
    touch("cat/1.png")
    folder = os.open(tmp_path / "src" / "cat", os.O_RDONLY)
    for _ in range(20):
        os.mkdir("x" * 250, dir_fd=folder)
        inner = os.open("x" * 250, os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = inner
    os.close(folder)
    with pytest.raises(
        DataError, match=r"cannot be listed \(File name too long\); make it readable, or move it out of"
    ):
        read_tree(tmp_path / "src", tmp_path / "out")


def test_no_such_source(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none: cannot be listed \(No such file"):
        read_tree(tmp_path / "none", tmp_path / "out")
