"""Shared computations of tasks that compare the embeddings of several views.

Legend: B batch, n samples of a rank, V views of a group, C channels, (H, W) image, N patches, D encoder width, d
embedding width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipeline.metrics.collector import Collector
from pipeline.metrics.effective_rank import EFFECTIVE_RANK, Spectrum, effective_rank
from pipeline.models.bundle import Preprocess
from pipeline.models.heads.head import Features
from pipeline.models.heads.projection.module import Projection
from pipeline.models.minivit import MiniViT
from pipeline.models.per_step import keyed
from pipeline.models.spec import Pair, whole_patches
from pipeline.tasks._joint import GLOBAL, HEAD
from pipeline.tasks.base import Evaluated, TaskModule, Tensors
from pipeline.tasks.ranks import Ranks

RANKED_EVERY = 8  # steps, on average: computing eigenvalues is slow and makes the host wait for the GPU

FEATURES = "features"  # name among the rows


class Embedded(NamedTuple):
    """Features of a group's views for downstream use, and the embeddings to compare."""

    features: Tensor  # [B, V, D]
    embeddings: Tensor  # fp32 [B, V, d]
    tokens: Tensor  # encoder output, [B*V, P+N, D]


class JointModule(TaskModule):
    """Compares the embeddings of views; evaluation measures how many directions the features of whole images use.

    Training sums are per sample, or per step for values that exist once per step; the sums include both counts.
    """

    coupled = True
    any_size = True

    def __init__(
        self, model: MiniViT, preprocess: Preprocess, terms: tuple[str, ...], step_terms: tuple[str, ...]
    ) -> None:
        """`terms` and `step_terms` are the parts of the loss: means over samples, and over steps."""
        super().__init__(model, preprocess)
        self.terms, self.step_terms = terms, step_terms
        self.sum_names = (*terms, "samples", *step_terms, "steps", EFFECTIVE_RANK.name, "ranked_steps")

    def embed(self, model: MiniViT, views: Tensor, keys: Tensor, mask: Tensor | None = None) -> Embedded:
        """Embed views [B, C, H, W] or [B, V, C, H, W] with keys [B] or [B, V] in one call of the encoder.

        `mask`, bool [B*V, N], marks patches to replace by [MASK].
        """
        views = views[:, None] if views.dim() == 4 else views
        images, head = views.flatten(0, 1), projector(model)
        with keyed(model, keys.flatten()):
            features = model.features(images) if mask is None else masked_features(model, images, mask)
        pooled = head.pooled(features)
        shape = views.shape[:2]
        return Embedded(pooled.unflatten(0, shape), head.project(pooled).float().unflatten(0, shape), features.tokens)

    def evaluate(self, views: Tensors, targets: Tensors, weights: Tensor, keys: Tensors) -> Evaluated:
        features = projector(self.model).pooled(self.model.features(views[GLOBAL])).float()
        return Evaluated(self.sums(samples=weights.double().sum()), features)

    def sums(self, **found: Tensor) -> Tensor:
        """float64 [S] with the given sums; all others are 0."""
        zero = next(iter(found.values())).new_zeros((), dtype=torch.float64)
        return torch.stack([found[name].detach().double() if name in found else zero for name in self.sum_names])

    def coupled_sums(self, rows: Tensors, weights: Tensor, ranks: Ranks, seed: int, **found: Tensor) -> Tensor:
        """Sums of a step's values, which are identical on every rank, and of the effective rank if it is measured."""
        values = {**found, "steps": weights.new_ones(())}
        if seed % RANKED_EVERY == 0:
            features = rows[FEATURES].detach().double()  # squares in fp32 would lose small singular values
            moments = ranks.sum(features.T @ (features * weights[:, None]))
            values |= {EFFECTIVE_RANK.name: effective_rank(moments), "ranked_steps": weights.new_ones(())}
        return self.sums(**values) / ranks.count

    def means(self, sums: Tensor) -> dict[str, float]:
        found = dict(zip(self.sum_names, sums.tolist(), strict=True))
        if not found["steps"]:
            return {}  # sums of an evaluation, which compares no views
        groups = {"samples": self.terms, "steps": self.step_terms, "ranked_steps": (EFFECTIVE_RANK.name,)}
        means = {name: found[name] / found[count] for count, names in groups.items() if found[count] for name in names}
        return {"loss": self.total(means), **means}

    @abstractmethod
    def total(self, means: Mapping[str, float]) -> float:
        """The loss from the means of its terms."""

    def collectors(self, *, validation: bool) -> dict[str, Collector]:
        return {"spectrum": Spectrum(self.model.spec.backbone.embed_dim)}

    def predict(self, images: Tensor, sizes: Sequence[Pair], **options: Any) -> list[list[float]]:
        """Features of whole images, D numbers each."""
        features: list[list[float]] = projector(self.model).pooled(self.model.features(images)).float().tolist()
        return features


def masked_features(model: MiniViT, images: Tensor, mask: Tensor) -> Features:
    """All tokens of images [B, C, H, W] whose patches in `mask`, bool [B, N], are replaced by [MASK]."""
    grid = whole_patches((images.shape[-2], images.shape[-1]), model.patch)
    return Features(model.forward_features(images, mask=mask), {}, grid, model.spec.backbone.tokens.num_prefix)


def projector(model: MiniViT) -> Projection:
    """The head that projects features to embeddings."""
    head = model.heads[HEAD]
    assert isinstance(head, Projection)
    return head
