from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from pipeline.shards.build import build_index
from pipeline.shards.preview import contact_sheet
from pipeline.shards.stats import dataset_stats, draw


def picture(height: int, width: int, extension: str = ".png") -> bytes:
    return cv2.imencode(extension, np.full((height, width, 3), 99, np.uint8))[1].tobytes()


def build(folder: Path, write_tar):
    write_tar(
        folder / "a.tar",
        [
            ("s0", {"png": picture(10, 20), "cls": b"0"}),
            ("s1", {"jpg": picture(30, 40, ".jpg"), "cls": b"1"}),
            ("s2", {"png": b"broken", "cls": b"1"}),
            ("s3", {"png": picture(50, 20)}),
        ],
    )
    return build_index(str(folder), classes=["cat", "dög"], workers=1)


def test_figures_of_a_small_set(tmp_path: Path, write_tar) -> None:
    index = build(tmp_path, write_tar)
    stats, sizes = dataset_stats(index, index.keys, workers=1)
    assert (stats["samples"], stats["images"], stats["unreadable_images"], stats["without_label"]) == (4, 3, 1, 1)
    assert stats["formats"] == {"PNG RGB": 2, "JPEG RGB": 1}
    assert stats["per_class"] == {"cat": 1, "dög": 2}
    assert (stats["height"]["p0"], stats["height"]["p50"], stats["height"]["p100"]) == (10, 30, 50)
    assert sizes[:, :2].tolist() == [[10, 20], [30, 40], [50, 20]]


def test_the_picture_is_drawn(tmp_path: Path, write_tar) -> None:
    index = build(tmp_path, write_tar)
    stats, sizes = dataset_stats(index, index.keys, workers=1)
    stats["per_class"] = {"$a_{$": 1, "日本 $1": 2}  # no formulas
    draw(stats, sizes, tmp_path / "stats.png")
    assert np.asarray(Image.open(tmp_path / "stats.png")).std() > 10


def test_the_contact_sheet_shows_good_and_bad(tmp_path: Path, write_tar) -> None:
    index = build(tmp_path, write_tar)
    contact_sheet(index, index.keys, tmp_path / "sheet.png", count=4, columns=2, side=64)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape[:2] == (2 * 12 + 2 * (64 + 30 + 8) - 8, 2 * 12 + 2 * (64 + 8) - 8)
    assert ((sheet == 99).all(axis=2)).sum() > 3 * 20 * 40, "three grey pictures"
    assert (sheet == [0xB3, 0x26, 0x1E]).all(axis=2).any(), "one frame of a bad one"
