"""Agreement of class maps with labels: intersection over union per class (Jaccard), counted in pixels.

It needs only three integers per class, which add up exactly over images, micro-batches and ranks.

Legend: K classes, (H, W) an image's own size. Pixels labelled -1 are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.metrics.bootstrap import Interval, ResampledSums
from pipeline.metrics.files import PER_CLASS, append_rows
from pipeline.metrics.full_maps import full_maps
from pipeline.metrics.schema import LOSS, Measure, Schema

if TYPE_CHECKING:
    from torch import Tensor

SEGMENTATION = Schema(
    (
        LOSS,
        Measure("mean_iou", "Mean IoU", "higher", share=True),
        Measure("pixel_accuracy", "Pixel accuracy", "higher", share=True),
    ),
    selects="mean_iou",
)


def overlaps(predicted: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """int64 [3, K]: for each class, the pixels that are correct, labelled as it, and predicted as it.

    Both inputs are integer tensors of the same shape on the same device; nothing here synchronises with the host.
    """
    import torch

    ignored = labels < 0
    true, guess = (values.long().masked_fill(ignored, num_classes).flatten() for values in (labels, predicted))
    right, kinds = true.where(true == guess, num_classes), num_classes + 1
    codes = torch.cat([right, true + kinds, guess + 2 * kinds])
    counts = codes.new_zeros(3 * kinds).scatter_add_(0, codes, torch.ones_like(codes))  # 1-D: exact on GPUs too
    return counts.view(3, kinds)[:, :num_classes]


def class_ious(counts: Tensor) -> list[float | None]:
    """IoU of each class from `overlaps` [3, K]; None for a class that is neither labelled nor predicted anywhere."""
    right, labelled, predicted = counts.tolist()
    unions = [a + b - both for both, a, b in zip(right, labelled, predicted, strict=True)]
    return [both / union if union else None for both, union in zip(right, unions, strict=True)]


def mean_iou(counts: Tensor) -> float | None:
    """The mean over the classes that occur; None if none does."""
    found = [iou for iou in class_ious(counts) if iou is not None]
    return sum(found) / len(found) if found else None


def pixel_accuracy(counts: Tensor) -> float | None:
    """The fraction of labelled pixels with the correct class; None if none is labelled."""
    right, labelled, _ = counts.sum(dim=1).tolist()
    return right / labelled if labelled else None


def full_labels(targets: Mapping[str, Tensor]) -> list[Tensor]:
    """The class maps [H, W] of an evaluation batch, each at its own size."""
    return full_maps(targets, "mask_full")


def iou_measures(counts: Tensor) -> dict[str, float]:
    """The measures from `overlaps` [3, K]; none if nothing is labelled."""
    found = {"mean_iou": mean_iou(counts), "pixel_accuracy": pixel_accuracy(counts)}
    return {name: value for name, value in found.items() if value is not None}


class IoUCounts:
    """A `Collector` of class maps [H, W] at the labels' own sizes: a row per class in a table, and intervals."""

    def __init__(self, num_classes: int) -> None:
        import torch

        self.num_classes = num_classes
        self.counts = torch.zeros(3, num_classes, dtype=torch.int64)
        self.resampled = ResampledSums(3 * num_classes)

    def add(self, predicted: Sequence[Tensor], batch: Any) -> None:
        """Count the good images of a batch."""
        rows = zip(predicted, full_labels(batch.targets), batch.slots.tolist(), batch.weights.tolist(), strict=True)
        for guess, labels, slot, weight in rows:
            if weight:
                counts = overlaps(guess, labels, self.num_classes).cpu()
                self.counts += counts
                self.resampled.add(slot, counts.flatten().numpy())

    def state(self) -> tuple[Tensor, ResampledSums]:
        return self.counts, self.resampled

    def merge(self, state: tuple[Tensor, ResampledSums]) -> None:
        counts, resampled = state
        self.counts = self.counts + counts
        self.resampled.merge(resampled)

    def measures(self) -> dict[str, float]:
        """None: mean IoU and pixel accuracy come from the sums."""
        return {}

    def intervals(self) -> dict[str, Interval]:
        import torch

        return self.resampled.intervals(lambda sums: iou_measures(torch.from_numpy(sums).view(3, -1)))

    def write(self, folder: Path, model: str, classes: Sequence[str]) -> None:
        """Write each class's pixels and IoU; the IoU of a class that does not occur is empty."""
        ious = ["" if iou is None else f"{iou:.6f}" for iou in class_ious(self.counts)]
        rows = [(model, *row) for row in zip(classes, *self.counts.tolist(), ious, strict=True)]
        append_rows(folder / PER_CLASS, ("model", "class", "right", "pixels", "predicted", "iou"), rows)
