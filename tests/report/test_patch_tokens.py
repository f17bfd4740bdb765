from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from pipeline.report.patch_tokens import token_colors


def test_equal_tokens_have_one_colour_in_all_images() -> None:
    rng = np.random.default_rng(0)
    kinds = rng.normal(size=(4, 16)) * 10
    which = rng.integers(4, size=(4, 6))
    colors = token_colors(kinds[which] + rng.normal(size=(4, 6, 16)) * 0.01, (2, 3))
    assert colors.shape == (4, 2, 3, 3)
    flat = colors.reshape(4, 6, 3).astype(int)
    means = [flat[which == kind].mean(axis=0) for kind in range(4)]
    for kind in range(4):
        assert np.abs(flat[which == kind] - means[kind]).max() < 10
    assert min(np.abs(one - other).max() for one, other in combinations(means, 2)) > 100


@pytest.mark.parametrize("shape", [(1, 1, 8), (1, 4, 2), (2, 2, 1)])
def test_few_tokens_or_features_are_colours_too(shape: tuple[int, int, int]) -> None:
    colors = token_colors(np.random.default_rng(0).normal(size=shape), (1, shape[1]))
    assert colors.shape == (shape[0], 1, shape[1], 3)
