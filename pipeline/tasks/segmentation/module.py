"""Semantic segmentation: cross-entropy per labelled pixel, evaluated on labels at their own size.

Legend: B batch, K classes, (h, w) grid of patches, (H, W) a view or an image's own size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.images.class_map import class_colors
from pipeline.images.drawing import write_lines
from pipeline.metrics.iou import IoUCounts, full_labels, iou_measures, overlaps
from pipeline.models.spec import Pair, as_pair
from pipeline.tasks._full_size import class_map, full_size_logits, likeliest
from pipeline.tasks.base import Compared, Evaluated, Outputs, TaskModule, Tensors
from pipeline.tasks.segmentation.pictures import Overlays, overlay
from pipeline.tasks.segmentation.windows import windowed_logits

if TYPE_CHECKING:
    from pipeline.images.decode import Pixels
    from pipeline.metrics.collector import Collector
    from pipeline.models.bundle import Preprocess
    from pipeline.models.minivit import MiniViT
    from pipeline.stream.batch import Batch
    from pipeline.tasks.segmentation import Task

IGNORED = -1


class Segmentation(TaskModule):
    """The model with its loss and measures; unlabelled pixels are ignored.

    Sums: the loss, the labelled pixels, and `metrics.iou.overlaps` row by row.
    """

    def __init__(self, model: MiniViT, task: Task, classes: Sequence[str], preprocess: Preprocess) -> None:
        super().__init__(model, preprocess)
        self.task, self.classes, self.num_classes = task, list(classes), len(classes)
        counts = (f"{what} {name}" for what in ("right", "labelled", "predicted") for name in classes)
        self.sum_names = ("loss", "pixels", *counts)

    def normalisers(self, batch: Batch) -> Tensor:
        """float64 [1]: number of labelled pixels."""
        return labelled(batch.targets["mask"], batch.weights)[None]

    def loss(self, views: Tensors, targets: Tensors, weights: Tensor, keys: Tensors) -> Outputs:
        """Loss at the view's resolution, to which logits are interpolated bilinearly."""
        images, labels = views["image"], targets["mask"]
        logits = F.interpolate(self.model(images).float(), images.shape[2:], mode="bilinear")
        losses = F.cross_entropy(
            logits, labels.long(), ignore_index=IGNORED, reduction="none", label_smoothing=self.task.label_smoothing
        )
        loss = losses.sum(dim=(1, 2)) @ weights
        with torch.no_grad():
            counted = labels.masked_fill((weights == 0)[:, None, None], IGNORED)
            counts = overlaps(logits.max(dim=1).indices, counted, self.num_classes)
            sums = torch.stack([loss.detach().double(), counts[1].sum().double()])
        return Outputs(loss[None], torch.cat([sums, counts.flatten().double()]))

    def evaluate(self, views: Tensors, targets: Tensors, weights: Tensor, keys: Tensors) -> Evaluated:
        """Evaluate on the labels at their own size; `predicted` holds the class maps [H, W]."""
        images = views["image"]
        view = (images.shape[2], images.shape[3])
        loss = torch.zeros((), dtype=torch.float64, device=images.device)
        counts = torch.zeros(3, self.num_classes, dtype=torch.int64, device=images.device)
        maps = []
        for logits, labels, weight in zip(self.logits(images), full_labels(targets), weights.tolist(), strict=True):
            maps.append(torch.zeros_like(labels))
            if not weight or not labels.numel():
                continue
            full = labels.shape[0], labels.shape[1]
            for first, band in full_size_logits(logits, full, view, self.preprocess.eval):
                part = labels[first : first + band.shape[1]]
                losses = F.cross_entropy(band[None], part[None].long(), ignore_index=IGNORED, reduction="none")
                loss += losses.sum(dtype=torch.float64)
                guess = likeliest(band)
                counts += overlaps(guess, part, self.num_classes)
                maps[-1][first : first + band.shape[1]] = guess.to(labels.dtype)
        sums = torch.cat([torch.stack([loss, counts[1].sum().double()]), counts.flatten().double()])
        return Evaluated(sums, maps)

    def logits(self, images: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, K, h, w], from whole images or, depending on the settings, from sliding windows."""
        stride = self.task.inference.stride
        if stride is None:
            logits: Tensor = self.model(images)
            return logits
        backbone = self.model.spec.backbone
        return windowed_logits(self.model, images, backbone.image_size, as_pair(stride), self.model.patch)

    @property
    def any_size(self) -> bool:  # type: ignore[override]
        """True for whole images; with windows, their number is fixed in the graph."""
        return self.task.inference.stride is None

    def exported(self) -> nn.Module:
        return ClassMaps(self)

    @property
    def output_names(self) -> tuple[str, ...]:
        return "class_map", "logits"

    def means(self, sums: Tensor) -> dict[str, float]:
        loss, pixels = sums[:2].tolist()
        counts = sums[2:].view(3, self.num_classes)
        return {"loss": loss / max(pixels, 1.0), **iou_measures(counts)}

    def collectors(self, *, validation: bool) -> dict[str, Collector]:
        if validation:
            return {}
        return {"iou": IoUCounts(self.num_classes), "pictures": Overlays(self.preprocess.eval)}

    def mistakes(self, predicted: Sequence[Tensor], batch: Batch) -> Tensor:
        """The share of labelled pixels that are wrong."""
        shares = []
        for guess, labels in zip(predicted, full_labels(batch.targets), strict=True):
            counted = labels >= 0
            shares.append(((guess != labels) & counted).sum() / counted.sum().clamp(min=1))
        return torch.stack(shares).float()

    def compared(self, predicted: Sequence[Tensor], batch: Batch, row: int) -> Compared:
        labels, guess = full_labels(batch.targets)[row].cpu().numpy(), predicted[row].cpu().numpy()
        right = ((guess == labels) & (labels >= 0)).sum() / max((labels >= 0).sum(), 1)
        return Compared((labels.shape[0], labels.shape[1]), labels, guess, f"{right:.0%} of the labelled pixels right")

    def predict(self, images: Tensor, sizes: Sequence[Pair], **options: Any) -> list[Any]:
        """Class maps, uint8 or int16 [H, W] arrays at the images' own sizes."""
        view = (images.shape[2], images.shape[3])
        dtype = torch.uint8 if self.num_classes <= 256 else torch.int16
        return [
            class_map(logits, size, view, self.preprocess.eval).to(dtype).cpu().numpy()
            for logits, size in zip(self.logits(images), sizes, strict=True)
        ]

    def summarise(self, images: Tensor, sizes: Sequence[Pair], limit: int) -> list[dict[str, float]]:
        """The share of pixels of each class."""
        found = [self._shares(one) for one in self.predict(images, sizes)]
        return [{self.classes[n]: share for n, share in list(shares.items())[:limit]} for shares in found]

    def draw(self, picture: Pixels, predicted: np.ndarray) -> Pixels:
        """Overlay the picture with class colours, and write the names of the classes, largest first."""
        largest = list(self._shares(predicted))
        colors = class_colors(self.num_classes).tolist()
        painted = overlay(picture, predicted)
        return write_lines(painted, [self.classes[n] for n in largest], [tuple(colors[n]) for n in largest])

    def record(self, predicted: np.ndarray) -> dict[str, Any]:
        """`classes`: name -> share of pixels, largest first."""
        return {"classes": {self.classes[n]: share for n, share in self._shares(predicted).items()}}

    def files(self, predicted: np.ndarray) -> dict[str, np.ndarray]:
        """The class map, as the target kind `mask` reads it."""
        return {".seg.png": predicted.astype(np.uint8 if self.num_classes <= 256 else np.uint16)}

    def _shares(self, predicted: np.ndarray) -> dict[int, float]:
        """Class -> share of the pixels of a class map, largest first, only for classes that occur; ignores -1."""
        pixels = np.bincount(predicted[predicted >= 0], minlength=self.num_classes)
        return {int(n): float(pixels[n] / pixels.sum()) for n in (-pixels).argsort(kind="stable") if pixels[n]}


class ClassMaps(nn.Module):
    """Images [B, C, H, W] -> most likely class of each pixel, int64 [B, H, W], and fp32 logits [B, K, h, w]."""

    def __init__(self, task: Segmentation) -> None:
        super().__init__()
        self.task = task

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.task.logits(images).float()
        return F.interpolate(logits, images.shape[2:], mode="bilinear").argmax(dim=1), logits


def labelled(labels: Tensor, weights: Tensor) -> Tensor:
    """float64: number of labelled pixels of labels [B, H, W], weighted per sample."""
    pixels: Tensor = ((labels >= 0).sum(dim=(1, 2)) * weights.double()).sum()
    return pixels
