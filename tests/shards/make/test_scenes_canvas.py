from __future__ import annotations

import numpy as np
import pytest

from pipeline.shards.make._scenes_canvas import FARTHEST_MM, LEAST_SLANT_MM, NEAREST_MM, TEXTURES, draw_canvas


@pytest.mark.parametrize("texture", TEXTURES)
@pytest.mark.parametrize(("height", "width"), [(64, 64), (70, 193)])
def test_textures_are_seen(texture, height: int, width: int) -> None:
    for seed in range(10):
        field = texture(height, width, np.random.default_rng(seed))
        assert field.shape == (height, width)
        assert field.dtype == np.float32
        assert 0 <= field.min() < field.max() <= 1
        assert field.std() > 0.05


def test_the_wall_recedes_towards_the_top() -> None:
    for seed in range(20):
        colours, depth = draw_canvas(90, 120, np.random.default_rng(seed))
        assert colours.shape == (90, 120, 3)
        assert 0 <= colours.min() <= colours.max() <= 1
        assert NEAREST_MM <= depth.min() <= depth.max() - LEAST_SLANT_MM <= FARTHEST_MM - LEAST_SLANT_MM
        assert depth[0].mean() > depth[-1].mean()
        assert np.abs(np.diff(depth, n=2, axis=0)).max() < 0.01  # it is flat
