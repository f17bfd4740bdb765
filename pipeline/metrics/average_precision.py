"""COCO's average precision of boxes, by pycocotools (Lin et al. 2014): exact on any number of ranks.

Legend: N images, n boxes of all images, K classes. Boxes are left, top, right, bottom in pixels of the original image.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pipeline.metrics.bootstrap import Interval, draws, intervals
from pipeline.metrics.files import PER_CLASS, PRECISION_RECALL, append_rows
from pipeline.metrics.resampled_precision import resampled_precisions
from pipeline.metrics.schema import LOSS, Measure, Schema

if TYPE_CHECKING:
    from pycocotools.cocoeval import COCOeval
    from torch import Tensor

SIZES = "small", "medium", "large"  # objects below 32 x 32 pixels, below 96 x 96, and others
DETECTION = Schema(
    (
        LOSS,
        Measure("map", "mAP", "higher", share=True),
        Measure("map_50", "mAP@0.5", "higher", share=True),
        Measure("map_75", "mAP@0.75", "higher", share=True),
        *(Measure(f"map_{size}", f"mAP of {size} objects", "higher", share=True) for size in SIZES),
    ),
    selects="map",
)
MOST = 100  # predictions that count per image, as in COCO


class PredictedBoxes(NamedTuple):
    """The predictions for one image, on any device."""

    boxes: Tensor  # fp32 [m, 4]
    scores: Tensor  # fp32 [m]
    labels: Tensor  # int64 [m]


class BoxRows(NamedTuple):
    """Labelled or predicted boxes of many images."""

    slots: np.ndarray  # int64 [n], slot of each box's image
    boxes: np.ndarray  # float64 [n, 4]
    labels: np.ndarray  # int64 [n]
    values: np.ndarray  # float64 [n]: the area of a labelled object, the score of a predicted one
    crowds: np.ndarray  # bool [n]

    @classmethod
    def of(
        cls, slots: np.ndarray, boxes: np.ndarray, labels: np.ndarray, values: np.ndarray, crowds: np.ndarray
    ) -> BoxRows:
        return cls(
            np.asarray(slots, np.int64),
            np.asarray(boxes, np.float64).reshape(-1, 4),
            np.asarray(labels, np.int64),
            np.asarray(values, np.float64),
            np.asarray(crowds, bool),
        )


class State(NamedTuple):
    images: np.ndarray  # int64 [N], slots
    labelled: BoxRows
    predicted: BoxRows


class AveragePrecision:
    """A `Collector` of an evaluation's boxes.

    Images count in data order, so that ties between scores break the same way on any number of ranks. `by_size` also
    measures small, medium and large objects, which takes four times as long.
    """

    def __init__(self, num_classes: int, *, by_size: bool) -> None:
        self.num_classes, self.by_size = num_classes, by_size
        self._parts: list[State] = []
        self._judge: COCOeval | None = None  # of these parts

    def add(self, predicted: Sequence[PredictedBoxes], batch: Any) -> None:
        """Add the good images of a batch."""
        self._judge = None
        good = ((batch.weights > 0) & (batch.slots >= 0)).cpu().numpy()
        slots, targets = batch.slots.cpu().numpy(), batch.targets
        names = ("boxes_full", "box_label", "box_area", "box_crowd")
        boxes, labels, areas, crowds = (targets[name].cpu().numpy() for name in names)
        owners = np.repeat(np.arange(len(slots)), np.diff(targets["boxes_full.offsets"].cpu().numpy()))
        kept = good[owners]
        labelled = BoxRows.of(slots[owners[kept]], boxes[kept], labels[kept], areas[kept], crowds[kept])
        found = [(slot, one) for slot, one, counts in zip(slots.tolist(), predicted, good, strict=True) if counts]
        parts = []
        for slot, one in found:
            guessed, scores, kinds = (part.detach().float().cpu().numpy() for part in one)
            parts.append(BoxRows.of(np.full(len(scores), slot), guessed, kinds, scores, np.zeros(len(scores))))
        self._parts.append(State(slots[good], labelled, joined_rows(parts)))

    def state(self) -> State:
        return State(
            np.concatenate([np.empty(0, np.int64), *(part.images for part in self._parts)]),
            joined_rows([part.labelled for part in self._parts]),
            joined_rows([part.predicted for part in self._parts]),
        )

    def merge(self, state: State) -> None:
        self._judge = None
        self._parts.append(state)

    def measures(self) -> dict[str, float]:
        """The measures of `DETECTION` that are defined: without large objects, for example, `map_large` is not."""
        precision = self._precision()
        found = {"map": precision[..., 0], "map_50": precision[0, ..., 0], "map_75": precision[5, ..., 0]}
        found |= {f"map_{size}": precision[..., 1 + n] for n, size in enumerate(SIZES)} if self.by_size else {}
        return {name: value for name, one in found.items() if (value := mean_of(one)) is not None}

    def intervals(self) -> dict[str, Interval]:
        """The bootstrap intervals of those measures: in a resample, too, a class without objects does not count."""
        if (judge := self._judged()) is None:
            return {}
        counts = draws(judge.params.imgIds)
        precision = resampled_precisions(judge, counts)  # [R, T, K]
        found = {"map": precision, "map_50": precision[:, :1], "map_75": precision[:, 5:6]}
        for number, size in enumerate(SIZES, 1) if self.by_size else ():
            found[f"map_{size}"] = resampled_precisions(judge, counts, number)
        means = {name: np.ma.masked_invalid(one).mean(axis=(1, 2)).filled(np.nan) for name, one in found.items()}
        return intervals(means, len(judge.params.imgIds))

    def write(self, folder: Path, model: str, classes: Sequence[str]) -> None:
        """Write each class's number of objects and its average precision, which is empty if there are none.

        Also writes the precision at 101 recalls, at an overlap of 0.5, of each class that has objects.
        """
        precision, labelled = self._precision(), self.state().labelled
        counts = np.bincount(labelled.labels[~labelled.crowds], minlength=self.num_classes).tolist()
        rows = []
        for label, (name, count) in enumerate(zip(classes, counts, strict=True)):
            values = mean_of(precision[..., label, 0]), mean_of(precision[0, :, label, 0])
            rows.append((model, name, count, *("" if value is None else f"{value:.6f}" for value in values)))
        append_rows(folder / PER_CLASS, ("model", "class", "objects", "ap", "ap_50"), rows)
        points = [
            (model, name, f"{recall / 100:.2f}", f"{value:.6f}")
            for label, name in enumerate(classes)
            for recall, value in enumerate(precision[0, :, label, 0].tolist())
            if value > -1
        ]
        append_rows(folder / PRECISION_RECALL, ("model", "class", "recall", "precision"), points)

    def _precision(self) -> np.ndarray:
        """float64 [10 overlaps from 0.5 to 0.95, 101 recalls, K, 1 or 4 sizes]; -1 if there is no object."""
        if (judge := self._judged()) is None:
            return np.full((10, 101, self.num_classes, 4 if self.by_size else 1), -1.0)
        found: np.ndarray = judge.eval["precision"][..., -1]
        return found

    def _judged(self) -> COCOeval | None:
        """The finished pycocotools evaluation; None if nothing is labelled."""
        if self._judge is None and len((state := self.state()).labelled.slots):
            self._judge = judged(state, self.num_classes, by_size=self.by_size)
        return self._judge


def joined_rows(parts: Sequence[BoxRows]) -> BoxRows:
    """The rows of all parts."""
    empty = BoxRows.of(np.empty(0), np.empty((0, 4)), np.empty(0), np.empty(0), np.empty(0))
    return BoxRows(*(np.concatenate(column) for column in zip(empty, *parts, strict=True)))


def mean_of(precision: np.ndarray) -> float | None:
    """The mean over entries that have objects; None if none has."""
    known = precision[precision > -1]
    return float(known.mean()) if len(known) else None


def judged(state: State, num_classes: int, *, by_size: bool) -> COCOeval:
    """The finished pycocotools evaluation of a state with labelled objects."""
    images = np.sort(state.images).tolist()
    sizes = slice(None) if by_size else slice(1)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):  # pycocotools prints its progress
        judge = coco_evaluation(state, images, num_classes)
        judge.params.areaRng = judge.params.areaRng[sizes]
        judge.params.areaRngLbl = judge.params.areaRngLbl[sizes]
        judge.params.maxDets = [MOST]
        judge.evaluate()
        judge.accumulate()
    return judge


def coco_evaluation(state: State, images: Sequence[int], num_classes: int) -> COCOeval:
    """The pycocotools evaluation of the predictions, not yet run."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    sets = []
    for rows, predicted in ((state.labelled, False), (state.predicted, True)):
        annotations, order = [], np.argsort(rows.slots, kind="stable").tolist()
        sides = rows.boxes[:, 2:] - rows.boxes[:, :2]
        boxes = np.concatenate([rows.boxes[:, :2], sides], axis=1).tolist()
        areas = (sides.prod(axis=1) if predicted else rows.values).tolist()
        columns = [column.tolist() for column in (rows.slots, rows.labels, rows.values, rows.crowds)]
        for number, row in enumerate(order, 1):  # ids from 1: 0 would mean no match
            slot, label, value, crowd = (column[row] for column in columns)
            one = {"id": number, "image_id": slot, "category_id": label, "bbox": boxes[row], "area": areas[row]}
            annotations.append(one | {"iscrowd": int(crowd)} | ({"score": value} if predicted else {}))
        coco = COCO()
        coco.dataset = {
            "images": [{"id": slot} for slot in images],
            "annotations": annotations,
            "categories": [{"id": label} for label in range(num_classes)],
        }
        coco.createIndex()
        sets.append(coco)
    return COCOeval(*sets, iouType="bbox")
