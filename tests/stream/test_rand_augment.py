from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as tv

from pipeline.config.data import RandAugmentConfig
from pipeline.stream import rand_augment as ra

RNG = np.random.default_rng(0)
PHOTO = cv2.GaussianBlur(RNG.integers(256, size=(132, 188, 3), dtype=np.uint8), (7, 7), 2)

# Ours, torchvision's, and the mean difference allowed: 0 where both round the same exact values.
PAIRS = {
    "brightness": (lambda x: ra.brightness(x, 1.4), lambda x: tv.adjust_brightness(x, 1.4), 1.0),
    "contrast": (lambda x: ra.contrast(x, 0.6), lambda x: tv.adjust_contrast(x, 0.6), 1.0),
    "saturation": (lambda x: ra.saturation(x, 1.7), lambda x: tv.adjust_saturation(x, 1.7), 1.0),
    "sharpness": (lambda x: ra.sharpness(x, 1.7), lambda x: tv.adjust_sharpness(x, 1.7), 1.0),
    "posterize": (lambda x: ra.posterize(x, 5), lambda x: tv.posterize(x, 5), 0.0),
    "solarize": (lambda x: ra.solarize(x, 120), lambda x: tv.solarize(x, 120), 0.0),
    "auto_contrast": (lambda x: ra.auto_contrast(x, 0), lambda x: tv.autocontrast(x), 1.0),
    "equalize": (lambda x: ra.equalize(x, 0), lambda x: tv.equalize(x), 0.0),
    "rotate": (
        lambda x: ra.rotate(x, 20),
        lambda x: tv.rotate(x, 20, interpolation=tv.InterpolationMode.BILINEAR),
        3.0,
    ),
    "translate_x": (
        lambda x: ra.translate_x(x, 0.2),
        lambda x: tv.affine(x, 0.0, [round(0.2 * x.shape[-1]), 0], 1.0, [0.0, 0.0]),
        0.0,
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_operations_agree_with_torchvision(name: str) -> None:
    ours, theirs, tolerance = PAIRS[name]
    expected = theirs(torch.from_numpy(PHOTO).permute(2, 0, 1)).permute(1, 2, 0).numpy()
    assert np.abs(ours(PHOTO).astype(int) - expected).mean() <= tolerance
    assert (expected != PHOTO).any()


@pytest.mark.parametrize("name", ra.NAMES)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("magnitude", [0, 9, 30])
def test_operations_keep_shape_and_type(name: str, channels: int, magnitude: int) -> None:
    operation, value_at, signed = ra.OPERATIONS[name]
    image = np.ascontiguousarray(PHOTO[:, :, :channels])
    for sign in (1, -1) if signed else (1,):
        out = operation(image, sign * value_at(magnitude / ra.MAX_MAGNITUDE))
        assert out.shape == image.shape
        assert out.dtype == np.uint8


def test_one_key_one_result_and_many_keys_many() -> None:
    config = RandAugmentConfig(ops=2, magnitude=15)
    outs = [ra.rand_augment(PHOTO, config, np.random.default_rng(seed)) for seed in [*range(20), 0]]
    np.testing.assert_array_equal(outs[0], outs[-1])
    assert len({out.tobytes() for out in outs}) > 10
