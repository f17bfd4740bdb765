from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import DataError
from pipeline.shards.make._folder_tree import Image
from pipeline.shards.make._mask_pairs import MaskPair, pair_up

CITY = "_leftImg8bit.png", "_gtFine_labelIds.png"


def files(*names: str) -> list[Image]:
    return [Image(name, 10) for name in names]


def test_equal_paths_belong_together() -> None:
    found = pair_up(files("a/1.jpg", "a/2.jpg", "3.png"), files("a/1.png", "3.png", "a/9.png"), (None, ".png"), None)
    assert found.pairs == [MaskPair("3.png", "3.png", 20), MaskPair("a/1.jpg", "a/1.png", 20)]
    assert found.left_out == {"images without a mask": ["a/2.jpg"], "masks without an image": ["a/9.png"]}


def test_names_may_end_in_their_own_ways() -> None:
    masks = files("bonn/0_gtFine_labelIds.png", "bonn/0_gtFine_color.png")
    found = pair_up(files("bonn/0_leftImg8bit.png", "bonn/0.jpg"), masks, CITY, None)
    assert found.pairs == [MaskPair("bonn/0_leftImg8bit.png", "bonn/0_gtFine_labelIds.png", 20)]
    assert found.left_out == {
        "images whose names end differently": ["bonn/0.jpg"],
        "masks whose names end differently": ["bonn/0_gtFine_color.png"],
    }


def test_a_list_chooses(tmp_path: Path) -> None:
    only = tmp_path / "train.txt"
    only.write_text("2007_1\n2007_7\n\n")
    images, masks = files("2007_1.jpg", "2007_2.jpg"), files("2007_1.png", "2007_2.png")
    found = pair_up(images, masks, (None, ".png"), only)
    assert [pair.image for pair in found.pairs] == ["2007_1.jpg"]
    assert found.left_out == {
        "pairs that --only does not list": ["2007_2.jpg"],
        "names in --only without a pair": ["2007_7"],
    }
    only.write_text("other")
    with pytest.raises(DataError, match="found no name of a pair; write names such as '2007_1'"):
        pair_up(images, masks, (None, ".png"), only)
    with pytest.raises(DataError, match="cannot be read"):
        pair_up(images, masks, (None, ".png"), tmp_path / "none")


@pytest.mark.parametrize(
    ("images", "masks", "suffixes", "message"),
    [
        (("a_x.jpg",), ("a_y.png",), (None, ".png"), "one image is 'a_x.jpg' below --images, one mask 'a_y.png'"),
        (("a.jpg",), ("a.png",), ("_x.jpg", ".png"), r"found no image named \*_x.jpg"),
        ((), ("a.png",), (None, ".png"), "--images: found no image; correct"),
        (("a.jpg",), (), (None, ".png"), "--masks: found no PNG"),
        (("a.jpg", "a.png"), ("a.png",), (None, ".png"), "a.jpg and a.png would be one sample"),
    ],
)
def test_what_cannot_be_paired(
    images: tuple[str, ...], masks: tuple[str, ...], suffixes: tuple[str | None, str], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        pair_up(files(*images), files(*masks), suffixes, None)
