from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest

from pipeline.metrics.average_precision import BoxRows, State, judged
from pipeline.metrics.resampled_precision import resampled_precisions

K = 4  # the last class is never labelled


def state(images: int) -> State:
    """Three objects and eight predictions per image, some of them crowds; no two scores are equal."""
    rng = np.random.default_rng(1)
    slots, others = np.repeat(np.arange(images), 3), np.repeat(np.arange(images), 8)
    corners, sides = rng.uniform(0, 200, (len(slots), 2)), np.exp(rng.uniform(2, 5, (len(slots), 2)))
    boxes, labels = np.concatenate([corners, corners + sides], axis=1), rng.integers(0, K - 1, len(slots))
    near = rng.integers(0, 3, len(others)) + 3 * others
    guesses = boxes[near] + rng.normal(0, 4, (len(others), 4))
    kinds = np.where(rng.random(len(others)) < 0.8, labels[near], rng.integers(0, K, len(others)))
    return State(
        np.arange(images),
        BoxRows.of(slots, boxes, labels, sides.prod(axis=1), rng.random(len(slots)) < 0.1),
        BoxRows.of(others, guesses, kinds, rng.random(len(others)), np.zeros(len(others))),
    )


def copied(found: State, counts: np.ndarray) -> State:
    """The images as often as `counts` has them, each copy with a slot of its own."""
    slots = np.repeat(np.arange(len(counts)), counts)
    parts = []
    for rows in found[1:]:
        chosen = [np.flatnonzero(rows.slots == slot) for slot in slots]
        owners = np.repeat(np.arange(len(slots)), [len(one) for one in chosen])
        kept = np.concatenate(chosen)
        parts.append(BoxRows.of(owners, *(column[kept] for column in rows[1:])))
    return State(np.arange(len(slots)), *parts)


@pytest.mark.parametrize("size", range(4))
def test_a_resample_has_the_precision_that_pycocotools_gives_for_its_images(size: int) -> None:
    found = state(12)
    counts = np.concatenate([np.ones((1, 12), int), np.random.default_rng(0).poisson(1, (6, 12))])
    with contextlib.redirect_stdout(io.StringIO()):
        precision = resampled_precisions(judged(found, K, by_size=True), counts, size)
        for row, own in enumerate(counts):
            expected = judged(copied(found, own), K, by_size=True).eval["precision"][..., size, 0]
            assert np.isnan(precision[row]).tolist() == (expected == -1).all(axis=1).tolist()
            assert np.nan_to_num(precision[row], nan=-1) == pytest.approx(expected.mean(axis=1), abs=1e-6)
    assert np.isnan(precision[:, :, -1]).all()
