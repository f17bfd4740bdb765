"""Predictions drawn next to the truth, for the first images of a data set and for a model's worst mistakes."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from pipeline.images.decode import Pixels
from pipeline.metrics.pictures import save_picture
from pipeline.stream.batch import Batch
from pipeline.tasks._pictures import GAP, MOST, SIDE, at_full_size
from pipeline.tasks.base import TaskModule

PICTURES = "pictures"  # name of a task's own collector of first images


class Example(NamedTuple):
    """A sample, ordered by its mistake; ties are broken by slot, with the lower slot ranked worse."""

    mistake: float
    place: int  # the negative slot
    picture: Pixels
    caption: str


class Examples:
    """A `Collector` of a task's drawings. Samples without a mistake never count as worst, even if there are few."""

    def __init__(self, task: TaskModule, *, first: bool):
        self.task, self.first = task, MOST if first else 0
        self._first: dict[int, Example] = {}  # by slot
        self._worst: list[Example] = []  # a heap

    def add(self, predicted: Any, batch: Batch) -> None:
        """Keep the batch's samples that are among the first or the worst so far."""
        mistakes = self.task.mistakes(predicted, batch)
        assert mistakes is not None
        counted = zip(mistakes.tolist(), batch.slots.tolist(), batch.weights.tolist(), strict=True)
        for row, (mistake, slot, weight) in enumerate(counted):
            if not weight or slot < 0:
                continue
            among = mistake > 0 and (len(self._worst) < MOST or (mistake, -slot) > self._worst[0][:2])
            if not among and slot >= self.first:
                continue
            example = Example(mistake, -slot, *self._drawn(predicted, batch, row))
            if among:
                self._keep(example)
            if slot < self.first:
                self._first[slot] = example

    def state(self) -> tuple[dict[int, Example], list[Example]]:
        return self._first, self._worst

    def merge(self, state: tuple[dict[int, Example], list[Example]]) -> None:
        first, worst = state
        self._first |= first
        for example in worst:
            self._keep(example)

    def measures(self) -> dict[str, float]:
        return {}

    def write(self, folder: Path, model: str, classes: Sequence[str]) -> None:
        """Write a picture of each example: image, truth, prediction."""
        for title, name, examples in (
            ("Predictions", "predicted", [self._first[slot] for slot in sorted(self._first)]),
            ("Worst mistakes", "worst", sorted(self._worst, reverse=True, key=lambda one: one[:2])),
        ):
            for number, one in enumerate(examples):
                told = f"{title} by {model}: image, truth, prediction"
                save_picture(folder, f"{name}-{model}-{number:03d}", one.picture, told, one.caption)

    def _keep(self, example: Example) -> None:
        if len(self._worst) < MOST:
            heapq.heappush(self._worst, example)
        elif example[:2] > self._worst[0][:2]:
            heapq.heapreplace(self._worst, example)

    def _drawn(self, predicted: Any, batch: Batch, row: int) -> tuple[Pixels, str]:
        """The three pictures side by side, and the caption."""
        found = self.task.compared(predicted, batch, row)
        view = batch.views["image"][row].permute(1, 2, 0).cpu().numpy()
        view = np.broadcast_to(view, (*view.shape[:2], 3)).copy()
        image = fitted(view) if found.size is None else at_full_size(view, found.size, self.task.preprocess.eval)
        parts = [image, self.task.draw(image.copy(), found.truth), self.task.draw(image.copy(), found.predicted)]
        gap = np.full((fitted(image).shape[0], GAP, 3), 255, np.uint8)
        row_of = np.concatenate([piece for part in parts for piece in (gap, fitted(part))][1:], axis=1)
        return row_of, f"image {int(batch.slots[row])}: {found.caption}"


def examples(task: TaskModule) -> list[Examples]:
    """A collector if the task defines `mistakes`; includes the first images unless the task has its own pictures."""
    if type(task).mistakes is TaskModule.mistakes:
        return []
    return [Examples(task, first=PICTURES not in task.collectors(validation=False))]


def fitted(picture: Pixels) -> Pixels:
    """The picture resized so that its longer side has SIDE pixels."""
    height, width = picture.shape[:2]
    scale = SIDE / max(height, width)
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST)
