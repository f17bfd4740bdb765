from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from click.testing import CliRunner
from PIL import Image

from pipeline.cli.shards import group
from pipeline.images.class_map import class_colors
from pipeline.images.depth_map import depth_colors
from pipeline.shards.build import build_index
from pipeline.shards.named_sets import named_set
from pipeline.shards.preview import contact_sheet
from pipeline.shards.stats import dataset_stats, draw_histograms


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
    build(tmp_path, write_tar)
    stats, sizes = dataset_stats(named_set(str(tmp_path)), workers=1)
    assert (stats["samples"], stats["images"], stats["unreadable_images"]) == (4, 3, 1)
    labels = stats["targets"]["class_id"]
    assert (labels["without"], labels["classes"], labels["counted"]) == (1, 2, "samples")
    assert stats["formats"] == {"PNG RGB": 2, "JPEG RGB": 1}
    assert labels["per_class"] == {"cat": 1, "dög": 2}
    assert (stats["height"]["p0"], stats["height"]["p50"], stats["height"]["p100"]) == (10, 30, 50)
    assert sizes[:, :2].tolist() == [[10, 20], [30, 40], [50, 20]]


def test_the_picture_is_drawn(tmp_path: Path, write_tar) -> None:
    build(tmp_path, write_tar)
    stats, sizes = dataset_stats(named_set(str(tmp_path)), workers=1)
    stats["targets"]["class_id"]["per_class"] = {"$a_{$": 1, "日本 $1": 2}  # no formulas
    draw_histograms(stats, sizes, tmp_path / "stats.png")
    assert np.asarray(Image.open(tmp_path / "stats.png")).std() > 10


def test_the_contact_sheet_shows_good_and_bad(tmp_path: Path, write_tar) -> None:
    build(tmp_path, write_tar)
    contact_sheet(named_set(str(tmp_path)), tmp_path / "sheet.png", count=4, columns=2, side=64)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape[:2] == (2 * 12 + 2 * (64 + 30 + 8) - 8, 2 * 12 + 2 * (64 + 8) - 8)
    assert ((sheet == 99).all(axis=2)).sum() > 3 * 20 * 40, "three grey pictures"
    assert (sheet == [0xB3, 0x26, 0x1E]).all(axis=2).any(), "one frame of a bad one"


def test_masks_are_counted_by_pixels_and_drawn_over_the_picture(tmp_path: Path, write_tar) -> None:
    classes = np.zeros((10, 20), np.uint8)
    classes[:, :5], classes[:, 5] = 1, 255
    mask = cv2.imencode(".png", classes)[1].tobytes()
    samples = {"s0": picture(10, 20), "s1": picture(10, 21)}  # the second mask has another size
    write_tar(tmp_path / "a.tar", [(key, {"png": image, "seg.png": mask}) for key, image in samples.items()])
    build_index(str(tmp_path), classes={"mask": ["wall", "door"]}, workers=1)
    stats, _ = dataset_stats(named_set(str(tmp_path)), workers=1)
    labels = stats["targets"]["mask"]
    assert (labels["counted"], labels["per_class"]) == ("pixels", {"wall": 140, "door": 50})
    assert labels["without"] == 1
    contact_sheet(named_set(str(tmp_path)), tmp_path / "sheet.png", count=2, columns=2, side=60)
    tile = np.asarray(Image.open(tmp_path / "sheet.png"))[12 + 15 : 12 + 45, 12:72]
    assert (tile[:, 16:18] == 99).all(), "where the label is ignored"
    assert len(np.unique(tile.reshape(-1, 3), axis=0)) == 3, "two colours beside it"


def test_depth_is_drawn_beside_the_picture_and_its_mask(tmp_path: Path, write_tar) -> None:
    classes = np.ones((10, 20), np.uint8)
    depth = np.full((10, 20), 1000, np.uint16)
    mask, distance = (cv2.imencode(".png", values)[1].tobytes() for values in (classes, depth))
    sample = {"png": picture(10, 20), "seg.png": mask, "depth.png": distance}
    write_tar(tmp_path / "a.tar", [("s0", sample), ("s1", {"png": picture(10, 20), "seg.png": mask})])
    build_index(str(tmp_path), classes={"mask": ["wall", "door"]}, workers=1)
    contact_sheet(named_set(str(tmp_path)), tmp_path / "sheet.png", count=2, columns=3, side=60)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    over, instead, other = (sheet[12 + 30, 12 + 30 + column * 68] for column in range(3))
    assert (over == (class_colors(2)[1] * 0.55 + 99 * 0.45).round()).all()
    assert (over == other).all(), "the sample without depth has one cell"
    assert (instead == depth_colors(np.ones((1, 1), np.float32))[0, 0]).all()


def test_captions_have_lengths_and_duplicates(tmp_path: Path, write_tar) -> None:
    captions = ["a cat\na small cat", "ein Kätzchen", "a cat", "\n"]
    write_tar(
        tmp_path / "a.tar",
        [(f"s{number}", {"png": picture(10, 20), "txt": text.encode()}) for number, text in enumerate(captions)],
    )
    build_index(str(tmp_path), workers=1)
    stats, _ = dataset_stats(named_set(str(tmp_path)), workers=1)
    found = stats["targets"]["text"]
    assert found["without"] == 1
    assert (found["captions_per_sample"]["p0"], found["captions_per_sample"]["p100"]) == (1, 2)
    assert (found["bytes"]["p0"], found["bytes"]["p100"]) == (5, 13)
    assert (found["words"]["p50"], found["words"]["p100"]) == (2, 3)
    assert found["duplicates"] == 0.25
    done = CliRunner().invoke(group, ["stats", str(tmp_path), "--workers", "1"])
    assert "text duplicates      25.0%" in done.output
    assert "text words           p0 2" in done.output
