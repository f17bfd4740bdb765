"""LeJEPA (Balestriero & LeCun 2025).

Legend: B batch, n samples of a rank, V views, D encoder width, d embedding width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.models.bundle import Preprocess
from pipeline.models.minivit import MiniViT
from pipeline.tasks._joint import GLOBAL
from pipeline.tasks._joint_module import FEATURES, JointModule
from pipeline.tasks.base import Coupled, Outputs, Tensors
from pipeline.tasks.lejepa.sigreg import directions, sigreg
from pipeline.tasks.ranks import Ranks

EMBEDDINGS = "embeddings"


class LeJEPA(JointModule):
    """Pulls each view's embedding to the mean of the sample's global views, and each view's distribution to N(0, I).

    The first term is a mean over samples, the second a statistic of the whole global batch.
    """

    def __init__(self, model: MiniViT, preprocess: Preprocess, regulariser: float, slices: int) -> None:
        super().__init__(model, preprocess, ("prediction",), ("sigreg",))
        self.regulariser, self.slices = regulariser, slices

    def loss(self, views: Tensors, targets: Tensors, weights: Tensor, keys: Tensors) -> Outputs:
        found = {group: self.embed(self.model, images, keys[group]) for group, images in views.items()}
        centre = found[GLOBAL].embeddings.mean(dim=1, keepdim=True)  # [B, 1, d]
        embeddings = torch.cat([each.embeddings for each in found.values()], dim=1)  # [B, V, d]
        distances = (embeddings - centre).square().mean(dim=(1, 2)) * weights
        sums = self.sums(prediction=distances.double().sum(), samples=weights.double().sum())
        rows = {EMBEDDINGS: embeddings, FEATURES: found[GLOBAL].features[:, 0].detach().float()}
        return Outputs((1 - self.regulariser) * distances.sum()[None], sums, rows)

    def couple(self, rows: Tensors, shared: Tensors, weights: Tensor, ranks: Ranks, seed: int) -> Coupled:
        embeddings = rows[EMBEDDINGS]
        statistic = sigreg(embeddings, weights, directions(seed, embeddings.shape[-1], self.slices), ranks)
        sums = self.coupled_sums(rows, weights, ranks, seed, sigreg=statistic)
        return Coupled(self.regulariser * statistic / ranks.count, sums)

    def total(self, means: Mapping[str, float]) -> float:
        return (1 - self.regulariser) * means["prediction"] + self.regulariser * means["sigreg"]
