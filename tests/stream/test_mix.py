from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.data import AugmentConfig
from pipeline.stream.mix import mix_pair

WHITE, BLACK = np.full((20, 30, 3), 250, np.uint8), np.zeros((20, 30, 3), np.uint8)
seeds = st.integers(0, 10_000)


@given(seeds)
def test_mixup_shares_the_pixels_as_it_shares_the_label(seed: int) -> None:
    image, (share, box) = mix_pair(WHITE, BLACK, AugmentConfig(mixup=0.8), np.random.default_rng(seed))
    assert box is None
    assert np.ptp(image) == 0
    assert abs(int(image[0, 0, 0]) - 250 * share) <= 0.51


@given(seeds)
def test_cutmix_shares_the_area_as_it_shares_the_label(seed: int) -> None:
    image, (share, box) = mix_pair(WHITE, BLACK, AugmentConfig(cutmix=1.0), np.random.default_rng(seed))
    assert set(np.unique(image).tolist()) <= {0, 250}
    assert abs(float((image == 250).mean()) - share) < 1e-9
    assert not image[box.top : box.top + box.height, box.left : box.right].any()


def test_both_take_turns() -> None:
    images = [mix_pair(WHITE, BLACK, AugmentConfig(mixup=1, cutmix=1), np.random.default_rng(s))[0] for s in range(200)]
    cut = sum(int(set(np.unique(image).tolist()) <= {0, 250}) for image in images)
    assert 60 < cut < 150


def test_inputs_stay_as_they_were() -> None:
    mix_pair(WHITE, BLACK, AugmentConfig(cutmix=1.0), np.random.default_rng(0))
    assert (WHITE == 250).all()
    assert (BLACK == 0).all()
