from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.shards.build import build_index
from pipeline.shards.duplicates import repetitions
from pipeline.shards.verify import Kind, verify_shards


def png(level: int) -> bytes:
    return cv2.imencode(".png", np.full((6, 6), level, np.uint8))[1].tobytes()


@given(st.lists(st.integers(0, 6), max_size=30))
def test_each_later_one_is_reported_with_the_first(values: list[int]) -> None:
    expected = sorted((values.index(value), place) for place, value in enumerate(values) if values.index(value) < place)
    first, again = repetitions(np.array(values, np.uint64))
    assert sorted(zip(first.tolist(), again.tolist(), strict=True)) == expected


def test_equal_images_are_doubles_and_equal_keys_of_two_shards_are_not(tmp_path: Path, write_tar) -> None:
    write_tar(tmp_path / "a.tar", [("one", {"png": png(1), "cls": b"0"}), ("two", {"png": png(2), "cls": b"1"})])
    write_tar(
        tmp_path / "b.tar",
        [
            ("two", {"png": png(3), "cls": b"1"}),
            ("four", {"png": png(2), "cls": b"1"}),
            ("three", {"png": png(1), "cls": b"1"}),
            ("five", {"png": png(2)}),
        ],
    )
    build_index(str(tmp_path), workers=1)
    found = [fault for fault in verify_shards(str(tmp_path), workers=1) if fault.kind is Kind.DOUBLE]
    assert [(Path(fault.shard).name, fault.key, fault.message) for fault in found] == [
        ("b.tar", "three", "label 1, but its image duplicates a.tar/one (label 0)"),
        ("b.tar", "four", "its image duplicates a.tar/two"),
        ("b.tar", "five", "its image duplicates a.tar/two"),
    ]


def test_images_that_cannot_be_decoded_are_named(tmp_path: Path, write_tar) -> None:
    whole = png(1)
    write_tar(
        tmp_path / "a.tar",
        [
            ("ok", {"png": whole, "cls": b"0"}),
            ("cut", {"png": whole[:-30], "cls": b"0"}),
            ("none", {"png": b"", "cls": b"0"}),
        ],
    )
    build_index(str(tmp_path), workers=1)
    faults = {fault.key: fault.message for fault in verify_shards(str(tmp_path), workers=2)}
    assert set(faults) == {"cut", "none"}
    assert faults["none"] == "the image is empty"
    undecoded = verify_shards(str(tmp_path), decode_images=False, workers=1)
    assert [(fault.key, fault.message) for fault in undecoded] == [("none", "the image is empty")]
