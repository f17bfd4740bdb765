"""Distillation of features: the student predicts the output of the teacher's last layer; needs no labels.

Legend: B batch, T tokens, P prefix tokens, (h, w) grid, N = h * w patches of the student, D width of the teacher.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.models.bundle import Preprocess
from pipeline.models.minivit import MiniViT
from pipeline.models.pooled import features_of
from pipeline.models.spec import Pair, whole_patches
from pipeline.tasks.base import Evaluated, Outputs, TaskModule, Tensors
from pipeline.tasks.distillation.teacher import Seen, Teacher

BETA = 2.0  # where the smooth L1 loss changes from quadratic to linear, as in Wei et al. 2022


class FeatureDistillation(TaskModule):
    """Trains the student's patches and class token, through a head, to match the teacher's.

    Targets are normalised to mean 0 and variance 1 over the width of each token, which makes all teachers comparable
    (Wei et al. 2022). All patches together have the same weight as the class token. `teacher` is None in a finished
    model, which only predicts.
    """

    sum_names = ("loss", "samples")

    def __init__(
        self, model: MiniViT, preprocess: Preprocess, teacher: Teacher | None, tokens: Collection[str], distance: str
    ) -> None:
        super().__init__(model, preprocess)
        self.teacher, self.tokens, self.distance = teacher, tokens, distance

    @property
    def head(self) -> Any:
        """The model's only head."""
        (head,) = self.model.heads.values()
        return head

    def loss(self, views: Tensors, targets: Tensors, weights: Tensor, keys: Tensors) -> Outputs:
        losses = self._losses(views["image"]) * weights
        return Outputs(losses.sum()[None], self._sums(losses, weights))

    def evaluate(self, views: Tensors, targets: Tensors, weights: Tensor, keys: Tensors) -> Evaluated:
        return Evaluated(self._sums(self._losses(views["image"]) * weights, weights), None)

    def _losses(self, images: Tensor) -> Tensor:
        """fp32 [B]: the mean of the patches' mean distance and the class token's distance, or the selected one."""
        assert self.teacher is not None
        grid = whole_patches((images.shape[-2], images.shape[-1]), self.model.patch)
        tokens, prefix = self.model.forward_features(images), self.model.spec.backbone.tokens.num_prefix
        seen = self.teacher.tokens(images, self.model.patch_embed.proj.weight)
        wanted = {"patches": (tokens[:, prefix:], patch_targets(seen, grid)), "cls": (tokens[:, :1], seen.cls)}
        ours, theirs = zip(*(wanted[name] for name in self.tokens), strict=True)
        guessed = self.head(torch.cat(ours, dim=1)).float().split([part.shape[1] for part in ours], dim=1)
        parts = [self._distances(guess, whiten(one)) for guess, one in zip(guessed, theirs, strict=True)]
        return torch.stack(parts).mean(dim=0)

    def _distances(self, guessed: Tensor, wanted: Tensor) -> Tensor:
        """[B, T, D] each -> [B], the mean over tokens."""
        if self.distance == "cosine":
            return 1 - F.cosine_similarity(guessed, wanted, dim=-1).mean(dim=1)
        return F.smooth_l1_loss(guessed, wanted, reduction="none", beta=BETA).mean(dim=(1, 2))

    def _sums(self, losses: Tensor, weights: Tensor) -> Tensor:
        return torch.stack([losses.detach().double().sum(), weights.double().sum()])

    def means(self, sums: Tensor) -> dict[str, float]:
        loss, samples = sums.tolist()
        return {"loss": loss / max(samples, 1.0)}

    def predict(self, images: Tensor, sizes: Sequence[Pair], **options: Any) -> list[list[float]]:
        """Features of whole images before the head: class token or mean of the patches, depending on the pooling."""
        return features_of(self.model, images)


def patch_targets(seen: Seen, grid: Pair) -> Tensor:
    """The teacher's patches [B, N, D] on the student's grid, resized bilinearly with antialiasing if grids differ."""
    if seen.grid == grid:
        return seen.patches
    feature_map = seen.patches.transpose(1, 2).unflatten(2, seen.grid)
    return F.interpolate(feature_map, grid, mode="bilinear", antialias=True).flatten(2).transpose(1, 2)


def whiten(tokens: Tensor) -> Tensor:
    """Normalise [..., D] to mean 0 and variance 1 over D."""
    return F.layer_norm(tokens, tokens.shape[-1:])
