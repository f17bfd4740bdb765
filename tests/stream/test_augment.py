from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.data import WHITE, AugmentConfig, RandAugmentConfig
from pipeline.images.geometry import Trail
from pipeline.stream.augment import color_jitter, erase, load_augmented, random_box, shift
from pipeline.stream.draws import AUGMENT, generator
from pipeline.stream.mix import mix_pair

ALL = AugmentConfig(color_jitter=0.4, three_augment=True, rand_augment=RandAugmentConfig(), erase=0.5)


def photo(height: int = 60, width: int = 90) -> np.ndarray:
    return np.random.default_rng(0).integers(256, size=(height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("crop", ["none", "padded", "simple", "random_resized"])
def test_shape_and_key_decide_the_result(kit, crop: str, channels: int) -> None:
    data = kit.encode(photo())
    config = ALL.model_copy(update={"crop": crop})
    draws = [load_augmented(data, (24, 32), channels, WHITE, config, generator(1, AUGMENT, slot)) for slot in (5, 5, 6)]
    assert all(image.shape == (24, 32, channels) and image.dtype == np.uint8 for image in draws)
    np.testing.assert_array_equal(draws[0], draws[1])
    assert (draws[0] != draws[2]).any()


class Noting:
    """Settings that notes which of them are read."""

    def __init__(self, config: AugmentConfig) -> None:
        self.config, self.read = config, set[str]()

    def __getattr__(self, name: str) -> object:
        self.read.add(name)
        return getattr(self.config, name)


def test_every_setting_is_applied(kit) -> None:
    read = set()
    for crop in ("none", "padded", "simple", "random_resized"):
        noting = Noting(ALL.model_copy(update={"crop": crop, "mixup": 0.2, "cutmix": 1.0}))
        image = load_augmented(kit.encode(photo()), (24, 32), 3, WHITE, noting, np.random.default_rng(0))
        mix_pair(image, image, noting, np.random.default_rng(0))
        read |= noting.read
    assert read == AugmentConfig.model_fields.keys()


@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 1000))
def test_a_random_box_lies_in_the_image(height: int, width: int, seed: int) -> None:
    box = random_box((height, width), AugmentConfig(), np.random.default_rng(seed))
    assert box.height > 0
    assert box.width > 0
    assert 0 <= box.top <= height - box.height
    assert 0 <= box.left <= width - box.width


def test_random_boxes_follow_the_configured_area() -> None:
    rng = np.random.default_rng(0)
    boxes = [random_box((400, 400), AugmentConfig(scale=(0.2, 0.6)), rng) for _ in range(300)]
    areas = np.array([box.height * box.width / 160_000 for box in boxes])
    assert areas.min() > 0.19
    assert areas.max() < 0.61
    assert abs(areas.mean() - 0.4) < 0.03


@given(st.integers(0, 1000))
def test_shift_moves_by_at_most_the_padding(seed: int) -> None:
    image = np.full((16, 24, 1), 200, np.uint8)
    out = shift(image, 0.125, np.random.default_rng(seed))
    rows, columns = np.flatnonzero(out.any(axis=(1, 2))), np.flatnonzero(out.any(axis=(0, 2)))
    assert 14 <= len(rows) <= 16
    assert 21 <= len(columns) <= 24
    assert (out[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] == 200).all()


def test_flips_come_half_the_time(kit) -> None:
    data = kit.encode(photo())
    config = AugmentConfig(crop="none")
    flipped = sum(
        int((load_augmented(data, (60, 90), 3, WHITE, config, generator(0, AUGMENT, slot)) == photo()[:, ::-1]).all())
        for slot in range(200)
    )
    assert 70 < flipped < 130


def test_erase_changes_one_rectangle() -> None:
    image = photo()
    changed = (erase(image, np.random.default_rng(1)) != image).any(axis=2)
    rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
    assert changed[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].mean() > 0.98
    assert 0.01 < changed.mean() < 0.4


@settings(max_examples=30)
@given(st.integers(0, 1000), st.sampled_from([1, 3]))
def test_jitter_keeps_the_shape(seed: int, channels: int) -> None:
    image = photo()[:, :, :channels]
    assert color_jitter(np.ascontiguousarray(image), 0.9, np.random.default_rng(seed)).shape == image.shape


@given(st.integers(1, 200), st.integers(1, 200), st.integers(1, 40), st.integers(1, 40), st.integers(0, 1000))
def test_a_simple_crop_fills_any_size_from_any_image(kit, height: int, width: int, h: int, w: int, seed: int) -> None:
    data = kit.encode(np.full((height, width, 3), 90, np.uint8))
    config = AugmentConfig(crop="simple", flip=False)
    image = load_augmented(data, (h, w), 3, WHITE, config, np.random.default_rng(seed))
    assert image.shape == (h, w, 3)
    assert (image == 90).all(), "reflected, not padded with black"


def test_a_simple_crop_keeps_the_scale_and_moves_along_the_longer_side(kit) -> None:
    ramp = np.tile(np.arange(180, dtype=np.uint8)[None, :, None], (60, 1, 3))
    config = AugmentConfig(crop="simple", flip=False)
    crops = [
        load_augmented(kit.encode(ramp), (60, 60), 3, WHITE, config, np.random.default_rng(seed)) for seed in range(200)
    ]
    assert all(0 <= int(step) <= 1 for crop in crops for step in np.abs(np.diff(crop[30, :, 0].astype(int))))
    starts = sorted(int(crop[30, 0, 0]) for crop in crops)
    assert starts[0] <= 6
    assert 100 < starts[-1] <= 124


@pytest.mark.parametrize("crop", ["none", "padded", "simple", "random_resized"])
def test_who_asks_for_the_geometry_gets_the_same_pixels_and_draws(kit, crop: str) -> None:
    config = ALL.model_copy(update={"crop": crop})
    for seed in range(10):
        one, other = np.random.default_rng(seed), np.random.default_rng(seed)
        np.testing.assert_array_equal(
            load_augmented(kit.encode(photo()), (24, 32), 3, WHITE, config, one),
            load_augmented(kit.encode(photo()), (24, 32), 3, WHITE, config, other, Trail()),
        )
        assert one.bit_generator.state == other.bit_generator.state
