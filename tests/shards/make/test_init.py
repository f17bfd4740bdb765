from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import DataError
from pipeline.shards.make import ensure_made, make, maker, names


def test_every_file_is_a_data_set_that_can_be_named() -> None:
    assert {"fashion-mnist-few", "folder"} <= set(names())
    for name in names():
        assert maker(name).__doc__
        assert maker(name.replace("-", "_")) is maker(name)


def test_a_wrong_name_lists_the_right_ones(tmp_path: Path) -> None:
    with pytest.raises(
        DataError,
        match=r"did you mean 'fashion-mnist'\? Allowed: captions, coco, depth, fashion-items, ",
    ):
        make("fashion-mnits", tmp_path)


def test_made_only_where_files_can_be_locked_and_moved() -> None:
    with pytest.raises(DataError, match="made in a local folder"):
        make("fashion-mnist", "s3://bucket/data")


def test_what_needs_more_than_a_name_says_what(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"run `minivit shards make folder --out .* --src \.\.\.`"):
        ensure_made("folder", f"{tmp_path}/train-*.tar")


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        make("fashion-mnist", tmp_path / "file" / "out")
