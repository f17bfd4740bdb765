"""Shared code of tasks that predict the pixels of masked patches.

Legend: B batch, C channels, (H, W) image, (h, w) grid, (p, q) patch, N patches, M masked patches, D width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline.metrics.collector import Collector
from pipeline.models.bundle import Preprocess
from pipeline.models.masking import Masking, random_masking
from pipeline.models.minivit import MiniViT
from pipeline.models.patch_embed import patchify
from pipeline.models.pooled import features_of
from pipeline.models.spec import Pair, whole_patches
from pipeline.tasks._reconstructions import Reconstruction, Reconstructions
from pipeline.tasks.base import Evaluated, Outputs, TaskModule, Tensors

Scale = tuple[Tensor, Tensor] | tuple[float, float]

EPS = 1e-6  # added to the variance of a patch, as in MAE's code: a flat patch has targets of 0


class MaskedModule(TaskModule):
    """Predicts the pixels of masked patches, which are drawn from a sample's key, fixed per position in evaluation.

    The loss is the mean over the masked pixels of the global batch. All images of a step have the same number of them,
    so this equals the mean of the samples' means. `norm_pixels` normalises each target patch to mean 0 and variance 1.
    """

    sum_names = ("loss", "samples")
    any_size = True

    def __init__(
        self, model: MiniViT, preprocess: Preprocess, mask_ratio: float, mask_unit: int, norm_pixels: bool
    ) -> None:
        super().__init__(model, preprocess)
        self.mask_ratio, self.mask_unit, self.norm_pixels = mask_ratio, mask_unit, norm_pixels

    @abstractmethod
    def reconstruct(self, images: Tensor, masking: Masking, grid: Pair) -> Tensor:
        """Predicted pixels [B, M, C*p*q] of the masked patches of images [B, C, H, W]."""

    @abstractmethod
    def distance(self, predicted: Tensor, pixels: Tensor) -> Tensor:
        """Loss of each pixel, fp32 [B, M, C*p*q]."""

    @property
    def head(self) -> Any:
        """The model's only head."""
        (head,) = self.model.heads.values()
        return head

    def loss(self, views: Tensors, targets: Tensors, weights: Tensor, keys: Tensors) -> Outputs:
        losses, *_ = self._losses(views["image"], weights, keys["image"])
        return Outputs(losses.sum()[None], self._sums(losses, weights))

    def evaluate(self, views: Tensors, targets: Tensors, weights: Tensor, keys: Tensors) -> Evaluated:
        losses, found, (mean, deviation) = self._losses(views["image"], weights, keys["image"])
        return Evaluated(self._sums(losses, weights), found._replace(pixels=found.pixels * deviation + mean))

    def _losses(self, images: Tensor, weights: Tensor, keys: Tensor) -> tuple[Tensor, Reconstruction, Scale]:
        """Weighted losses, fp32 [B], the predictions, and the mean and deviation that map them to the images' scale."""
        patch = self.model.patch
        grid = whole_patches((images.shape[-2], images.shape[-1]), patch)
        masking = random_masking(keys, grid, self.mask_ratio, self.mask_unit)
        predicted = self.reconstruct(images, masking, grid).float()
        pixels = masked_pixels(images, masking, patch)
        scale: Scale = patch_scale(pixels) if self.norm_pixels else (0.0, 1.0)
        losses = self.distance(predicted, (pixels - scale[0]) / scale[1]).mean(dim=(1, 2)) * weights
        return losses, Reconstruction(predicted.detach(), masking, patch), scale

    def _sums(self, losses: Tensor, weights: Tensor) -> Tensor:
        return torch.stack([losses.detach().double().sum(), weights.double().sum()])

    def means(self, sums: Tensor) -> dict[str, float]:
        loss, samples = sums.tolist()
        return {"loss": loss / max(samples, 1.0)}

    def collectors(self, *, validation: bool) -> dict[str, Collector]:
        return {} if validation else {"reconstructions": Reconstructions(self.preprocess)}

    def predict(self, images: Tensor, sizes: Sequence[Pair], **options: Any) -> list[list[float]]:
        """Features of whole images, D numbers each: class token or mean of the patches, depending on the pooling."""
        return features_of(self.model, images)


def masked_pixels(images: Tensor, masking: Masking, patch: Pair) -> Tensor:
    """[B, C, H, W] -> fp32 [B, M, C*p*q], the pixels of the masked patches."""
    return patchify(images, patch).take_along_dim(masking.masked[..., None], dim=1).float()


def patch_scale(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """[B, M, C*p*q] -> mean and deviation [B, M, 1] of the pixels of each patch."""
    variance, mean = torch.var_mean(pixels, dim=-1, correction=0, keepdim=True)
    return mean, (variance + EPS).sqrt()
