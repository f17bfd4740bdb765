"""Masked autoencoders: the encoder sees only the visible patches, and the decoder predicts the pixels of the others."""

from __future__ import annotations

from torch import Tensor

from pipeline.models.masking import Masking
from pipeline.models.spec import Pair
from pipeline.tasks._masked import MaskedModule


class MAE(MaskedModule):
    """Squared error of the predicted pixels (He et al. 2022)."""

    def reconstruct(self, images: Tensor, masking: Masking, grid: Pair) -> Tensor:
        encoded = self.model.forward_features(images, keep=masking.visible)
        pixels: Tensor = self.head(encoded, masking, grid, self.model.patch)
        return pixels

    def distance(self, predicted: Tensor, pixels: Tensor) -> Tensor:
        return (predicted - pixels).square()
