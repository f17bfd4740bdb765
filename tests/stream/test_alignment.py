"""Drawings in an image, and masks, end up where its geometry says, to within half a pixel."""

from __future__ import annotations

import io
from functools import cache
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from pipeline.config.data import WHITE, AugmentConfig, PlainConfig, RandAugmentConfig
from pipeline.images import load
from pipeline.images.geometry import Geometry, Trail
from pipeline.images.plain import load_plain
from pipeline.stream import rand_augment as ra
from pipeline.stream.augment import load_augmented

GROUND, DOT = 60, 250
SIZE = (52, 68)  # what is loaded: not square
TO_STORED = {  # what undoes the turn of an EXIF orientation
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
WARPS = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")


@cache
def scene(height: int, width: int, across: int) -> tuple[np.ndarray, np.ndarray]:
    """Discs of 1.5 steps on a jittered lattice of so many columns: uint8 [height, width], and their centres [N, 2]."""
    step = width / across / 7
    rng = np.random.default_rng(0)
    lattice = np.stack(np.meshgrid(np.arange(across), np.arange(int(height / (7 * step)))), axis=-1).reshape(-1, 2)
    centres = (lattice * 7 + 3.5 + rng.uniform(-0.7, 0.7, lattice.shape)) * step
    y, x = np.mgrid[:height, :width] + 0.5
    distance = np.full((height, width), np.inf)
    for cx, cy in centres:
        np.minimum(distance, np.hypot(x - cx, y - cy), out=distance)
    covered = np.clip(1.5 * step - distance + 0.5, 0, 1)
    return (GROUND + covered * (DOT - GROUND)).round().astype(np.uint8), centres


@cache
def file_of(height: int, width: int, across: int, format: str, orientation: int) -> bytes:
    image = Image.fromarray(scene(height, width, across)[0]).convert("RGB")
    turn = TO_STORED[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    options = {"quality": 95} if format == "JPEG" else {}
    (image if turn is None else image.transpose(turn)).save(file, format, exif=exif, **options)
    return file.getvalue()


def deviations(image: np.ndarray, geometry: Geometry, centres: np.ndarray, step: float) -> np.ndarray:
    """How far each disc that is seen whole lies from where the geometry puts it, pixels [M]."""
    rx, ry = 2.4 * step * np.linalg.norm(geometry.matrix[:, :2], axis=1)
    light = np.clip(image[:, :, 0].astype(float) - (GROUND + 15), 0, None)
    height, width = light.shape
    y, x = np.mgrid[:height, :width] + 0.5
    found = []
    for px, py in geometry.apply(centres):
        near = (abs(x - px) < rx) & (abs(y - py) < ry)
        seen = rx + 1 < px < width - rx - 1 and ry + 1 < py < height - ry - 1
        if seen and image[:, :, 0][near].min() > GROUND - 25:  # not cut off by a black corner
            mass = light[near]
            assert mass.sum() > 2 * DOT, "no disc where there should be one"
            found.append(np.hypot((x[near] * mass).sum() / mass.sum() - px, (y[near] * mass).sum() / mass.sum() - py))
    return np.array(found)


def check(image: np.ndarray, geometry: Geometry, full: tuple[int, int], across: int) -> int:
    """Discs and mask lie where the geometry says; returns how many discs were seen."""
    drawn, centres = scene(*full, across)
    assert geometry.source == full
    assert geometry.size == image.shape[:2]
    step = full[1] / across / 7
    away = deviations(image, geometry, centres, step)
    assert (away < 0.5).all(), away
    assert np.median(away) < 0.25 if len(away) else True
    mask = geometry.warp_mask((drawn > (GROUND + DOT) / 2).astype(np.int8))
    bright = np.where(mask < 0, 0, np.where(mask > 0, DOT, GROUND)).astype(np.uint8)
    # Half a pixel away from any edge of the mask, the picture shows what the mask says.
    sure = (cv2.dilate(bright, np.ones((3, 3))) == bright) & (cv2.erode(bright, np.ones((3, 3))) == bright)
    wrong = abs(image[:, :, 0].astype(int) - bright) > 80
    assert (sure & wrong & (mask >= 0)).sum() <= 0.002 * sure.size
    return len(away)


@pytest.fixture
def shrinks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """At which fractions of their size JPEGs were decoded."""
    seen = []
    decode = load.decode_jpeg

    def spied(*args: Any, shrink: int, **options: Any) -> Any:
        seen.append(shrink)
        return decode(*args, shrink=shrink, **options)

    monkeypatch.setattr(load, "decode_jpeg", spied)
    return seen


@pytest.mark.parametrize("orientation", TO_STORED)
@pytest.mark.parametrize("crop", ["none", "padded", "simple", "random_resized"])
def test_crops_flips_and_turns(crop: str, orientation: int) -> None:
    full, across = (171, 133), 7
    config = AugmentConfig(crop=crop, scale=(0.3, 1.0))
    for format in ("PNG", "JPEG"):
        data, seen = file_of(*full, across, format, orientation), 0
        for seed in range(6):
            trail = Trail()
            image = load_augmented(data, SIZE, 3, WHITE, config, np.random.default_rng(seed), trail)
            seen += check(image, trail.geometry, full, across)
        assert seen > 30


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("shrink", [1, 2, 4, 8])
@pytest.mark.parametrize("crop", ["none", "simple", "random_resized"])
def test_jpegs_decoded_at_a_fraction_of_their_size(
    shrinks: list[int], crop: str, shrink: int, orientation: int
) -> None:
    full = (52 * shrink + 3 * shrink // 2 + 5, 68 * shrink + 5 * shrink + 1)  # no multiples of anything
    config = AugmentConfig(crop=crop, scale=(0.9, 1.0), ratio=(1.2, 1.3))
    data = file_of(*full, 7, "JPEG", orientation)
    for seed in range(4):
        trail = Trail()
        image = load_augmented(data, SIZE, 1, WHITE, config, np.random.default_rng(seed), trail)
        assert check(image, trail.geometry, full, 7) > 15
    assert shrink in shrinks


@pytest.mark.parametrize("names", [*[(name,) for name in WARPS], WARPS])
@pytest.mark.parametrize("crop", ["none", "random_resized"])
def test_warps(monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], crop: str) -> None:
    monkeypatch.setattr(ra, "NAMES", names)
    full, seen = (171, 133), 0
    config = AugmentConfig(crop=crop, scale=(0.4, 1.0), rand_augment=RandAugmentConfig(ops=2, magnitude=13))
    for seed in range(12):
        trail = Trail()
        data = file_of(*full, 7, "JPEG", 1)
        image = load_augmented(data, SIZE, 3, WHITE, config, np.random.default_rng(seed), trail)
        seen += check(image, trail.geometry, full, 7)
        black, ignored = image[:, :, 0] < 10, trail.geometry.warp_mask(np.zeros(full, np.int8)) < 0
        touching = cv2.dilate(ignored.astype(np.uint8), np.ones((3, 3))) > 0
        assert not (black & ~touching).any(), "black corners are ignored, though the source goes on there"
        assert not (cv2.erode(ignored.astype(np.uint8), np.ones((3, 3)), borderValue=1).astype(bool) & ~black).any()
    assert seen > 60


@pytest.mark.parametrize("crop_pct", [1.0, 0.8])
@pytest.mark.parametrize("resize", ["squash", "shorter", "pad"])
@pytest.mark.parametrize("interpolation", ["auto", "bicubic"])
def test_evaluation(resize: Any, interpolation: Any, crop_pct: float) -> None:
    how = PlainConfig(resize=resize, interpolation=interpolation, crop_pct=crop_pct)
    for full, across in (((171, 133), 7), ((451, 597), 7), ((41, 50), 5)):
        for format in ("PNG", "JPEG"):
            trail = Trail()
            image = load_plain(file_of(*full, across, format, 1), SIZE, 3, (GROUND,) * 3, how, trail)
            assert check(image, trail.geometry, full, across) > 3
