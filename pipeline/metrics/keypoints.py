"""Accuracy of keypoints: PCK, and average precision by object keypoint similarity (COCO).

Legend: n instances of an image, K keypoints.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pipeline.metrics.bootstrap import Interval, ResampledSums, draws, intervals
from pipeline.metrics.files import PER_CLASS, append_rows
from pipeline.metrics.resampled_precision import resampled_precisions
from pipeline.metrics.schema import LOSS, Measure, Schema

if TYPE_CHECKING:
    from pycocotools.cocoeval import COCOeval
    from torch import Tensor

HIDDEN, VISIBLE = 1, 2  # COCO's v of a labelled keypoint; 0: not labelled
NEAR = 0.1  # fraction of the longer side of an instance's box
KEYPOINTS = Schema(
    (
        LOSS,
        Measure("pck", f"PCK@{NEAR}", "higher", share=True),
        Measure("pck_visible", f"PCK@{NEAR} without hidden ones", "higher", share=True),
        Measure("oks_ap", "OKS AP", "higher", share=True),
    ),
    selects="pck",
)
# COCO's tolerance for each of its 17 keypoints: nose, eyes, ears, shoulders, elbows, wrists, hips, knees, ankles.
COCO_SIGMAS = (
    *(0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072),
    *(0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089, 0.089),
)
CATEGORY = 1  # shared by all instances


class ImageInstances(NamedTuple):
    """The instances of one image, in image pixels."""

    truth: np.ndarray  # float64 [n, K, 3]: x, y, v
    boxes: np.ndarray  # float64 [n, 4]: left, top, right, bottom
    areas: np.ndarray  # float64 [n]
    predicted: np.ndarray  # float64 [n, K, 3]: x, y, score


def default_sigmas(count: int) -> tuple[float, ...]:
    """COCO's sigmas for 17 keypoints; for any other `count`, 1 / count for each."""
    return COCO_SIGMAS if count == len(COCO_SIGMAS) else (1 / count,) * count


def right_keypoints(predicted: Tensor, truth: Tensor, boxes: Tensor) -> Tensor:
    """Bool [n, K]: labelled keypoints predicted within NEAR times the longer side of their box.

    `predicted` and `truth` are [n, K, 3], `boxes` [n, 4].
    """
    sides = (boxes[:, 2:] - boxes[:, :2]).max(dim=1).values
    distances = (predicted[..., :2] - truth[..., :2]).square().sum(dim=2).sqrt()
    return (truth[..., 2] > 0) & (distances <= NEAR * sides[:, None])


def oks_ap(judge: COCOeval) -> float | None:
    """Mean average precision of an evaluation over OKS 0.50, 0.55, ... 0.95; None without a labelled keypoint."""
    precision: np.ndarray = judge.eval["precision"][:, :, 0, 0, 0]
    return float(precision.mean()) if precision.max() > -1 else None


def judged(images: dict[int, ImageInstances], sigmas: Sequence[float]) -> COCOeval:
    """The finished pycocotools evaluation; an instance's score is the mean score of its keypoints."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth, found = COCO(), COCO()
    truth.dataset = _dataset(images, [_truths(number, one) for number, one in images.items()])
    found.dataset = _dataset(images, [_guesses(number, one) for number, one in images.items()])
    with contextlib.redirect_stdout(io.StringIO()):
        for each in (truth, found):
            each.createIndex()
        judge = COCOeval(truth, found, "keypoints")
        judge.params.kpt_oks_sigmas = np.array(sigmas)
        judge.evaluate()
        judge.accumulate()
    return judge


def _dataset(images: dict[int, ImageInstances], annotations: list[list[dict[str, Any]]]) -> dict[str, Any]:
    listed = [one for of_image in annotations for one in of_image]
    return {
        "images": [{"id": number} for number in images],
        "categories": [{"id": CATEGORY}],
        "annotations": [{"id": place, "category_id": CATEGORY, **one} for place, one in enumerate(listed, 1)],
    }


def _truths(image: int, one: ImageInstances) -> list[dict[str, Any]]:
    rows = zip(one.truth, one.boxes.tolist(), one.areas.tolist(), strict=True)
    return [
        {
            "image_id": image,
            "keypoints": points.reshape(-1).tolist(),
            "num_keypoints": int((points[:, 2] > 0).sum()),
            "bbox": [left, top, right - left, bottom - top],
            "area": area,
            "iscrowd": 0,
        }
        for points, (left, top, right, bottom), area in rows
    ]


def _guesses(image: int, one: ImageInstances) -> list[dict[str, Any]]:
    return [
        {
            "image_id": image,
            "keypoints": points.reshape(-1).tolist(),
            "score": float(points[:, 2].mean()),
            "area": float(np.ptp(points[:, :2], axis=0).prod()),
        }
        for points in one.predicted
    ]


class KeypointResults:
    """A `Collector` of all instances: PCK of visible keypoints, OKS AP, intervals, a row per keypoint in a table."""

    def __init__(self, sigmas: Sequence[float]) -> None:
        self.sigmas, self.images = tuple(sigmas), dict[int, ImageInstances]()  # by slot
        self._judge: COCOeval | None = None  # of these images

    def add(self, predicted: Sequence[ImageInstances], batch: Any) -> None:
        self._judge = None
        for slot, weight, one in zip(batch.slots.tolist(), batch.weights.tolist(), predicted, strict=True):
            if weight and slot >= 0:
                self.images[slot] = one

    def state(self) -> dict[int, ImageInstances]:
        return self.images

    def merge(self, state: dict[int, ImageInstances]) -> None:
        self._judge = None
        self.images |= state

    def measures(self) -> dict[str, float]:
        """PCK of the visible keypoints, and OKS AP."""
        *_, right, visible = self._counts().sum(axis=1).tolist()
        found = oks_ap(self._judged())
        return ({"pck_visible": right / visible} if visible else {}) | ({} if found is None else {"oks_ap": found})

    def intervals(self) -> dict[str, Interval]:
        """Of both kinds of PCK, and OKS AP."""
        pck, judge = ResampledSums(4), self._judged()
        for slot, one in self.images.items():
            pck.add(slot, counted(one).sum(axis=1))
        precision = resampled_precisions(judge, draws(judge.params.imgIds))[:, :, 0]
        oks = intervals({"oks_ap": precision.mean(axis=1)}, len(self.images))
        return pck.intervals(_pcks) | oks

    def _counts(self) -> np.ndarray:
        """int64 [4, K], as in `counted`, of all images."""
        return sum(map(counted, self.images.values()), np.zeros((4, len(self.sigmas)), np.int64))

    def _judged(self) -> COCOeval:
        """The finished evaluation in data order, so that ties break the same way on any number of ranks."""
        if self._judge is None:
            self._judge = judged(dict(sorted(self.images.items())), self.sigmas)
        return self._judge

    def write(self, folder: Path, model: str, classes: Sequence[str]) -> None:
        """Write how often each keypoint is labelled and right, and the same where it is visible."""
        rows = [
            (model, name, right, labelled, _share(right, labelled), seen, visible, _share(seen, visible))
            for name, right, labelled, seen, visible in zip(classes, *self._counts().tolist(), strict=True)
        ]
        columns = "right", "labelled", "pck", "right_visible", "visible", "pck_visible"
        append_rows(folder / PER_CLASS, ("model", "class", *columns), rows)


def counted(one: ImageInstances) -> np.ndarray:
    """int64 [4, K]: how often each keypoint of an image is right, labelled, right and visible, and visible."""
    import torch

    right = right_keypoints(*(torch.from_numpy(part) for part in (one.predicted, one.truth, one.boxes))).numpy()
    visible = one.truth[..., 2] == VISIBLE
    return np.stack([each.sum(axis=0) for each in (right, one.truth[..., 2] > 0, right & visible, visible)])


def _pcks(sums: np.ndarray) -> dict[str, float]:
    right, labelled, seen, visible = sums.tolist()
    return ({"pck": right / labelled} if labelled else {}) | ({"pck_visible": seen / visible} if visible else {})


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.6f}" if whole else ""
