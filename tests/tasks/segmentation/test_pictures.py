from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.config.data import SQUASH, PlainConfig
from pipeline.images.class_map import class_colors
from pipeline.images.plain import plain
from pipeline.tasks._pictures import MOST, MapExample, at_full_size
from pipeline.tasks.segmentation.pictures import LINE, Overlays, drawn, overlay


def batch(first: int, count: int, weights: list[float] | None = None) -> SimpleNamespace:
    labels = np.zeros((count, 20, 30), np.int8)
    labels[:, :10] = 1
    return SimpleNamespace(
        views={"image": torch.full((count, 3, 16, 16), 100, dtype=torch.uint8)},
        targets={
            "mask_full": torch.from_numpy(labels.ravel()),
            "mask_full.offsets": torch.arange(count + 1) * 600,
            "mask_full_size": torch.tensor([[20, 30]] * count, dtype=torch.int32),
        },
        slots=torch.arange(first, first + count),
        weights=torch.tensor(weights or [1.0] * count),
    )


def predictions(count: int) -> list[torch.Tensor]:
    return [torch.zeros(20, 30, dtype=torch.int64)] * count


def test_the_first_good_images_of_all_ranks_are_shown(tmp_path: Path) -> None:
    ranks = [Overlays(SQUASH), Overlays(SQUASH)]
    ranks[0].add(predictions(3), batch(3, 3, [1, 0, 1]))
    ranks[1].add(predictions(3), batch(0, 3))
    ranks[1].add(predictions(4), batch(MOST - 2, 4))
    ranks[0].merge(ranks[1].state())
    assert sorted(ranks[0].shown) == [0, 1, 2, 3, 5, MOST - 2, MOST - 1]
    ranks[0].write(tmp_path, "finetune", ["wall", "bag"])
    described = sorted((tmp_path / "pictures").glob("*.json"))
    assert len(described) == 7
    said = json.loads(described[0].read_text())
    assert "finetune" in said["title"]
    with Image.open(tmp_path / "pictures" / said["file"]) as drawn:
        assert drawn.mode == "RGB"
        pixels = np.array(drawn).reshape(-1, 3)
    # Both classes' colours are there over the image's grey, and in the legend as they are.
    seen = {tuple(row) for row in np.unique(pixels, axis=0).tolist()}
    grey = np.full((1, 1, 3), 100, np.uint8)
    for number, colour in enumerate(class_colors(2).tolist()):
        assert tuple(colour) in seen
        assert tuple(overlay(grey, np.full((1, 1), number))[0, 0].tolist()) in seen


def test_the_legend_names_what_occurs() -> None:
    image = np.full((20, 30, 3), 100, np.uint8)
    few = drawn(MapExample(image, np.full((20, 30), -1), np.full((20, 30), 3)), [f"class {n}" for n in range(150)])
    most = drawn(
        MapExample(image, np.arange(600).reshape(20, 30) % 150, np.zeros((20, 30), int)), [str(n) for n in range(150)]
    )
    assert few.height + 29 * LINE == most.height


def test_nothing_is_written_of_no_images(tmp_path: Path) -> None:
    Overlays(SQUASH).write(tmp_path, "finetune", ["wall", "bag"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("how", [SQUASH, PlainConfig(resize="pad"), PlainConfig(resize="shorter", crop_pct=0.8)])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_view_is_stretched_back_to_its_place(how: PlainConfig, channels: int) -> None:
    rows, columns = np.mgrid[:90, :60]
    image = np.repeat((rows + 2 * columns)[..., None], channels, axis=2).astype(np.uint8)
    back = at_full_size(plain(image, (48, 48), (255, 255, 255), how), (90, 60), how)
    seen = back.any(axis=2)
    assert back.shape == (90, 60, 3)
    assert seen.mean() > 0.3
    inside = seen.copy()
    inside[:4], inside[-4:], inside[:, :4], inside[:, -4:] = False, False, False, False
    assert np.abs(back[..., 0].astype(int) - image[..., 0])[inside].max() <= 6


def test_what_is_not_labelled_keeps_its_colour() -> None:
    image = np.full((1, 2, 3), 200, np.uint8)
    drawn = overlay(image, np.array([[-1, 1]]))
    assert drawn[0, 0].tolist() == [200, 200, 200]
    assert drawn[0, 1].tolist() != [200, 200, 200]
