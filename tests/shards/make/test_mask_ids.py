from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import DataError
from pipeline.shards.make._mask_ids import ids_of, read_remap, remap_text


def classes(ids: list[int], *args: object) -> list[int]:
    return ids_of(*args).table[ids].tolist()


def test_without_a_map_ids_are_the_classes() -> None:
    ids = ids_of(3, None, None)
    assert ids.table[[0, 2, 255]].tolist() == [0, 2, -1]
    assert ids.outside(np.array([[0, 2, 255], [7, 3, 3]])) == [3, 7]
    assert ids.stored(np.array([[0, 2, 255]], np.uint8)) is None


def test_a_map_ignores_what_it_does_not_name() -> None:
    assert classes([0, 1, 150, 151, 7], 150, None, "0=ignore, 1-150=0") == [-1, 0, 149, -1, 6]
    stored = ids_of(150, None, "1-150=0").stored(np.array([[0, 1, 150]], np.uint8))
    assert stored.tolist() == [[255, 0, 149]]
    assert stored.dtype == np.uint8


def test_another_ignored_id_becomes_255() -> None:
    assert ids_of(3, 9, None).stored(np.array([[0, 9]], np.uint8)).tolist() == [[0, 255]]


def test_many_classes_take_16_bits() -> None:
    ids = ids_of(300, None, None)
    assert ids.ignore == 65535
    assert ids.table[[255, 299, 65535]].tolist() == [255, 299, -1]
    assert ids_of(300, 300, None).stored(np.array([[299, 300]], np.uint16)).tolist() == [[299, 65535]]


def test_a_map_may_stand_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "map.txt"
    path.write_text("# Cityscapes\n7 0   # road\n8 -> 1\n\n9:ignore\n")
    assert read_remap(remap_text(str(path)) or "") == {7: 0, 8: 1, 9: -1}
    with pytest.raises(DataError, match=r"none.txt: cannot be read"):
        remap_text(str(tmp_path / "none.txt"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("a=1", "found 'a=1'; write OLD=NEW"),
        ("5-3=0", "'5-3=0' is not a range of ids"),
        ("70000=1", "not a range of ids from 0 to 65535"),
        ("1-5=0,3=7", "3 is mapped twice"),
        (",", "found no mapping"),
        ("1-5=8", "3 becomes 10, but --classes names 10, 0 to 9"),
    ],
)
def test_what_is_no_map(given: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        ids_of(10, None, given)


def test_a_class_cannot_be_ignored_without_a_map() -> None:
    with pytest.raises(DataError, match=r"--ignore 0: this id is a class.*--remap 1-3=0"):
        ids_of(3, 0, None)
