"""SimMIM: masked patches enter the encoder as [MASK] tokens, and a single linear layer predicts their pixels."""

from __future__ import annotations

from torch import Tensor

from pipeline.models.masking import Masking
from pipeline.models.spec import Pair
from pipeline.tasks._masked import MaskedModule


class SimMIM(MaskedModule):
    """Absolute error of the predicted pixels (Xie et al. 2022)."""

    def reconstruct(self, images: Tensor, masking: Masking, grid: Pair) -> Tensor:
        encoded = self.model.forward_features(images, mask=masking.as_mask())
        pixels: Tensor = self.head(encoded, masking, self.model.patch)
        return pixels

    def distance(self, predicted: Tensor, pixels: Tensor) -> Tensor:
        return (predicted - pixels).abs()
