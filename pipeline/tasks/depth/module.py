"""Depth: a scale-invariant loss per image, evaluated on depth maps at their own size. The model outputs log metres.

Legend: B batch, (h, w) grid of outputs, (H, W) a view or an image's own size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.images.depth_map import MOST_STEPS, depth_colors, millimetres
from pipeline.images.drawing import write_lines
from pipeline.metrics.depth import DepthIntervals, depth_errors, depth_measures
from pipeline.metrics.full_maps import full_maps
from pipeline.models.spec import Pair
from pipeline.tasks._full_size import full_size_logits
from pipeline.tasks.base import Compared, Evaluated, Outputs, TaskModule, Tensors
from pipeline.tasks.depth.pictures import DepthMaps

if TYPE_CHECKING:
    from pipeline.images.decode import Pixels
    from pipeline.metrics.collector import Collector
    from pipeline.models.bundle import Preprocess
    from pipeline.models.minivit import MiniViT
    from pipeline.stream.batch import Batch
    from pipeline.tasks.depth import Task


class DepthEstimation(TaskModule):
    """The model with its loss and measures; unmeasured pixels are ignored.

    The loss of an image is mean(e^2) - s mean(e)^2 over its measured pixels, where e is the error of log depth and s
    the setting `scale_invariance` (1/2 in Eigen et al. 2014). It is computed per image, because each image has its own
    unknown scale: it is normalised by the number of images with a measured pixel, and the squared mean involves no sum
    over ranks.

    Sums: the loss, its images, and `metrics.depth.depth_errors`.
    """

    sum_names = ("loss", "images", "pixels", "relative", "squared", "within")
    any_size = True
    file_limit = f"{MOST_STEPS / 1000} m"
    output_names = ("metres",)

    def __init__(self, model: MiniViT, task: Task, preprocess: Preprocess) -> None:
        super().__init__(model, preprocess)
        self.scale_invariance = task.scale_invariance

    def normalisers(self, batch: Batch) -> Tensor:
        """float64 [1]: images with a measured pixel."""
        return (measured_images(batch.targets["depth"]) * batch.weights.double()).sum()[None]

    def loss(self, views: Tensors, targets: Tensors, weights: Tensor, keys: Tensors) -> Outputs:
        """Loss at the view's resolution, to which log depth is interpolated bilinearly."""
        images, truth = views["image"], targets["depth"]
        logs = F.interpolate(self.model(images).float(), images.shape[2:], mode="bilinear")[:, 0]
        moments = log_moments(logs, truth)
        losses = self._image_losses(moments)
        loss, images_seen = losses @ weights, measured_images(truth).double() @ weights.double()
        with torch.no_grad():
            errors = depth_errors(logs.exp(), truth * (weights > 0)[:, None, None])
            sums = torch.cat([torch.stack([loss.detach().double(), images_seen]), errors])
        return Outputs(loss[None], sums)

    def _image_losses(self, moments: Tensor) -> Tensor:
        """[B] from `log_moments` [B, 3]; 0 for images without a measured pixel."""
        pixels, first, second = moments.unbind(dim=1)
        pixels = pixels.clamp(min=1)
        return second / pixels - self.scale_invariance * (first / pixels).square()

    def evaluate(self, views: Tensors, targets: Tensors, weights: Tensor, keys: Tensors) -> Evaluated:
        """Evaluate on depth maps at their own size; `predicted` are fp32 [H, W] in metres."""
        images = views["image"]
        view = (images.shape[2], images.shape[3])
        sums = torch.zeros(len(self.sum_names), dtype=torch.float64, device=images.device)
        maps = []
        truths = full_maps(targets, "depth_full")
        for logs, truth, weight in zip(self.model(images), truths, weights.tolist(), strict=True):
            maps.append(torch.zeros_like(truth))
            if not weight or not truth.numel():
                continue
            moments = torch.zeros(1, 3, dtype=torch.float64, device=images.device)
            for first, band in full_size_logits(logs, (truth.shape[0], truth.shape[1]), view, self.preprocess.eval):
                rows = slice(first, first + band.shape[1])
                moments += log_moments(band.double(), truth[None, rows])
                maps[-1][rows] = band[0].exp()
            sums[:2] += torch.cat([self._image_losses(moments), torch.ones_like(sums[:1])])
            sums[2:] += depth_errors(maps[-1], truth)
        return Evaluated(sums, maps)

    def exported(self) -> nn.Module:
        return Metres(self.model)

    def means(self, sums: Tensor) -> dict[str, float]:
        loss, images, *errors = sums.tolist()
        return {"loss": loss / max(images, 1.0), **depth_measures(errors)}

    def collectors(self, *, validation: bool) -> dict[str, Collector]:
        return {} if validation else {"intervals": DepthIntervals(), "pictures": DepthMaps(self.preprocess.eval)}

    def mistakes(self, predicted: Sequence[Tensor], batch: Batch) -> Tensor:
        """AbsRel of each image over its measured pixels."""
        return torch.stack([relative_error(*pair) for pair in zip(predicted, self._truths(batch), strict=True)])

    def compared(self, predicted: Sequence[Tensor], batch: Batch, row: int) -> Compared:
        truth, guess = self._truths(batch)[row], predicted[row]
        size, error = (truth.shape[0], truth.shape[1]), float(relative_error(guess, truth))
        return Compared(size, truth.cpu().numpy(), guess.cpu().numpy(), f"AbsRel {error:.2f}")

    def _truths(self, batch: Batch) -> list[Tensor]:
        return full_maps(batch.targets, "depth_full")

    def predict(self, images: Tensor, sizes: Sequence[Pair], **options: Any) -> list[np.ndarray]:
        """float32 [H, W] arrays in metres, at the images' own sizes."""
        view, found = (images.shape[2], images.shape[3]), []
        for logs, size in zip(self.model(images), sizes, strict=True):
            bands = [band[0].exp() for _, band in full_size_logits(logs, size, view, self.preprocess.eval)]
            found.append(torch.cat(bands).cpu().numpy())
        return found

    def draw(self, picture: Pixels, predicted: np.ndarray) -> Pixels:
        """Replace the picture by depth colours, labelled with the nearest and farthest depth."""
        return write_lines(depth_colors(predicted), [f"{predicted.min():.2f} to {predicted.max():.2f} m"])

    def record(self, predicted: np.ndarray) -> dict[str, Any]:
        """`metres`: the nearest, median and farthest depth."""
        near, middle, far = np.percentile(predicted, (0, 50, 100)).tolist()
        return {"metres": {"nearest": near, "median": middle, "farthest": far}}

    def files(self, predicted: np.ndarray) -> dict[str, np.ndarray]:
        """Depth in millimetres, as the target kind `depth` reads it."""
        return {".depth.png": millimetres(predicted)}

    def clipped(self, predicted: np.ndarray) -> int:
        return int(((predicted * 1000).round() > MOST_STEPS).sum())


class Metres(nn.Module):
    """Images [B, C, H, W] -> depth of each pixel in metres, fp32 [B, H, W]."""

    def __init__(self, model: MiniViT) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return F.interpolate(self.model(images).float(), images.shape[2:], mode="bilinear")[:, 0].exp()


def relative_error(guess: Tensor, truth: Tensor) -> Tensor:
    """fp32 []: mean of |guess - truth| / truth over the measured pixels, both in metres; 0 if there are none."""
    measured = truth > 0
    errors = ((guess - truth).abs() / truth.clamp(min=1e-6)) * measured
    return errors.sum().float() / measured.sum().clamp(min=1)


def measured_images(truth: Tensor) -> Tensor:
    """Bool [B]: which depth maps [B, H, W] have a measured pixel."""
    return truth.flatten(1).any(dim=1)


def log_moments(logs: Tensor, truth: Tensor) -> Tensor:
    """[B, 3] in the dtype of `logs`: the number of measured pixels, and sums of e and e^2 over them.

    e is the error of log depth. `logs` is the prediction, `truth` is in metres, both [B, H, W].
    """
    measured = truth > 0
    errors = (logs - truth.to(logs.dtype).where(measured, 1).log()) * measured
    parts = measured.to(logs.dtype), errors, errors.square()
    return torch.stack([part.flatten(1).sum(dim=1) for part in parts], dim=1)
