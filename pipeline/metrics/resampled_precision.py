"""COCO's average precision in resamples of the images, from one pycocotools evaluation: images are matched only once.

Legend: R resamples, N images, T thresholds of overlap, K classes, d predictions of a class, r those that are right.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pycocotools.cocoeval import COCOeval

BLOCK = 1 << 22  # values of an array: 16 MB


def resampled_precisions(judge: COCOeval, counts: np.ndarray, size: int = 0) -> np.ndarray:
    """float64 [R, T, K]: average precision of each class in each resample, NaN where it has no object.

    Args:
        judge: after `evaluate`, with a single `maxDets`.
        counts: int64 [R, N], how often each resample has each of `judge.params.imgIds`.
        size: index of one of `judge.params.areaRng`.
    """
    params, images = judge.params, len(judge.params.imgIds)
    found = np.full((len(counts), len(params.iouThrs), len(params.catIds)), np.nan)
    for label in range(len(params.catIds)):
        first = (label * len(params.areaRng) + size) * images
        judged = [(row, one) for row, one in enumerate(judge.evalImgs[first : first + images]) if one is not None]
        rows = np.array([row for row, _ in judged], np.int64)
        found[:, :, label] = _of_class(rows, [one for _, one in judged], counts, params)
    return found


def _of_class(rows: np.ndarray, judged: Sequence[Any], counts: np.ndarray, params: Any) -> np.ndarray:
    """float64 [R, T] from the judged images of a class, at `rows` of all images."""
    found = np.full((len(counts), len(params.iouThrs)), np.nan)
    objects = counts[:, rows] @ np.array([np.count_nonzero(one["gtIgnore"] == 0) for one in judged], np.int64)  # [R]
    some = np.flatnonzero(objects)
    if not len(some):
        return found
    scores = np.concatenate([one["dtScores"] for one in judged])
    order = np.argsort(-scores, kind="stable")
    owners = np.repeat(rows, [len(one["dtScores"]) for one in judged])[order]
    right, ignored = (
        np.concatenate([one[name] for one in judged], axis=1)[:, order] > 0 for name in ("dtMatches", "dtIgnore")
    )
    for part in np.array_split(some, -(-len(some) * max(len(owners), 1) // BLOCK)):
        drawn = counts[part][:, owners].astype(np.float32)  # [R, d]
        for overlap in range(len(right)):
            kept = np.flatnonzero(~ignored[overlap])
            places = np.flatnonzero(right[overlap, kept])
            if not len(places):
                found[part, overlap] = 0
                continue
            kept = kept[: places[-1] + 1]
            hits = np.cumsum(drawn[:, kept[places]], axis=1)
            between = np.add.reduceat(drawn[:, kept], np.concatenate([[0], places[:-1] + 1]), axis=1)
            predictions = np.cumsum(between, axis=1)
            found[part, overlap] = _mean_precision(hits, predictions, objects[part], params.recThrs)
    return found


def _mean_precision(hits: np.ndarray, predictions: np.ndarray, objects: np.ndarray, recalls: np.ndarray) -> np.ndarray:
    """float64 [R]: the mean over `recalls` of the highest precision at that recall or above.

    `hits` and `predictions` count, fp32 [R, r], what there is up to each right prediction; precision is highest there.
    """
    precision = hits / np.maximum(predictions, 1)
    highest = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    reached = np.searchsorted(recalls, hits.astype(np.float64) / objects[:, None], side="right")  # [R, r]
    return (highest * np.diff(reached, axis=1, prepend=0)).sum(axis=1, dtype=np.float64) / len(recalls)
