from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.metrics.pictures import PictureRecord, read_pictures, save_picture


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 3), (4, 6, 4)])
def test_a_picture_is_read_as_it_was_saved(tmp_path: Path, shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)
    path = save_picture(tmp_path, "mask: pretrain/nano 1", pixels, "Masks", "a boot")
    assert path == tmp_path / "pictures" / "mask-pretrain-nano-1.png"
    assert np.array_equal(np.asarray(Image.open(path)), pixels)
    assert read_pictures(tmp_path) == [(path, PictureRecord(path.name, "Masks", "a boot"))]


def test_pictures_come_in_the_order_of_their_names_without_torn_ones(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        save_picture(tmp_path, name, Image.new("RGB", (2, 2)), "Title", name)
    (tmp_path / "pictures" / "d.json").write_text('{"file": "d.p')
    (tmp_path / "pictures" / "c.png").unlink()
    assert [picture.caption for _, picture in read_pictures(tmp_path)] == ["a", "b"]
    assert read_pictures(tmp_path / "elsewhere") == []
