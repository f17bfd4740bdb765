from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.config.data import AugmentConfig, DatasetConfig
from pipeline.config.views import IMAGE, ViewGroup
from pipeline.images.geometry import Size
from pipeline.shards.build import build_index
from pipeline.shards.write import TarWriter
from pipeline.stages.enlarged_views import enlarged_share, enlarged_views, first_sizes
from pipeline.stream.augment import random_box
from pipeline.stream.source import Source


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Images of 40 x 60, one of which is torn."""
    folder = tmp_path_factory.mktemp("shards")
    writer = TarWriter(folder / "a-000000.tar")
    for number in range(20):
        Image.fromarray(np.zeros((40, 60), np.uint8)).save(folder / "image.png")
        data = b"torn" if number == 3 else (folder / "image.png").read_bytes()
        writer.write(f"s{number}", {"png": data})
    writer.finish()
    return Source("items", build_index(str(folder), workers=1), DatasetConfig(shards="unused"), AugmentConfig())


def told(source: Source, views: dict[str, ViewGroup]) -> list[str]:
    stage: Any = SimpleNamespace(task=SimpleNamespace(view_groups=lambda: views))
    return list(enlarged_views(stage, [source], (32, 32)))


def test_says_which_views_are_enlarged(source: Source) -> None:
    assert first_sizes(source) == [(40, 60)] * 15
    [sentence] = told(source, {"global": ViewGroup(2, scale=(0.5, 1.0)), "local": ViewGroup(2, (20, 20), (0.0, 1 / 3))})
    assert sentence.startswith(
        "task.views.local: 50 % of its crops of items have fewer pixels than the view's 20 x 20 and are enlarged (the "
        "first 15 images are up to 40 x 60); a smaller size"
    )
    assert told(source, {"global": ViewGroup(2, scale=(0.5, 1.0)), "local": ViewGroup(2, (8, 8), (0.1, 0.3))}) == []


def test_says_nothing_of_tasks_that_see_each_sample_once(source: Source) -> None:
    assert told(source, IMAGE) == []


@pytest.mark.parametrize(
    ("image", "view", "scale"), [((40, 60), (20, 20), (0.05, 0.4)), ((28, 28), (14, 14), (0.1, 1))]
)
def test_the_share_is_that_of_the_crops(image: Size, view: Size, scale: tuple[float, float]) -> None:
    augment, rng = AugmentConfig(scale=scale), np.random.default_rng(0)
    boxes = [random_box(image, augment, rng) for _ in range(4000)]
    found = sum(box.height * box.width < view[0] * view[1] for box in boxes) / len(boxes)
    assert enlarged_share(image, view, augment) == pytest.approx(found, abs=0.04)


def test_a_whole_image_is_enlarged_or_not() -> None:
    assert enlarged_share((8, 8), (9, 9), AugmentConfig(crop="none")) == 1
    assert enlarged_share((8, 8), (8, 8), AugmentConfig(crop="none")) == 0
