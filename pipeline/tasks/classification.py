"""Image classification: cross-entropy against (possibly mixed, possibly smoothed) labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.config.training import ClassificationConfig
from pipeline.metrics.accuracy import CLASSIFICATION, top_sums
from pipeline.metrics.collector import Collector
from pipeline.metrics.confusion import ConfusionCounts


class Labelled(Protocol):
    """What the loss needs of a batch of B samples."""

    labels: Tensor  # int64 [B]
    labels_mix: Tensor  # int64 [B]: the partner's label under mixup or cutmix
    mix: Tensor  # float32 [B]: share of the sample's own label
    weights: Tensor  # float32 [B]: 0 for stand-ins and padding


class Classification:
    """Loss and metrics of a K-class problem.

    Metrics travel as a vector of sums over samples, so that they add up over micro-batches, steps and ranks:
    [loss, correct, correct within the top 5, weight].
    """

    schema = CLASSIFICATION

    def __init__(self, config: ClassificationConfig, num_classes: int) -> None:
        self.label_smoothing = config.label_smoothing
        self.num_classes = num_classes

    def loss(self, model: Callable[[Tensor], Tensor], images: Tensor, batch: Labelled) -> tuple[Tensor, Tensor]:
        """Weighted training loss per sample [B] (fp32) and logits [B, K] (fp32) of normalised images [B, C, H, W]."""
        logits = model(images).float()
        log_probs = F.log_softmax(logits, dim=-1)
        own = log_probs.gather(1, batch.labels[:, None])[:, 0]
        partner = log_probs.gather(1, batch.labels_mix[:, None])[:, 0]
        target_log_prob = batch.mix * own + (1 - batch.mix) * partner
        if self.label_smoothing:
            target_log_prob = torch.lerp(target_log_prob, log_probs.mean(dim=-1), self.label_smoothing)
        return -target_log_prob * batch.weights, logits

    def evaluate(self, model: Callable[[Tensor], Tensor], images: Tensor, batch: Labelled) -> tuple[Tensor, Tensor]:
        """As `loss`, but plain cross-entropy: neither smoothed nor mixed, in validation as in evaluation."""
        logits = model(images).float()
        return F.cross_entropy(logits, batch.labels, reduction="none") * batch.weights, logits

    @torch.no_grad()
    def sums(self, losses: Tensor, logits: Tensor, batch: Labelled) -> Tensor:
        """Metric sums [4] in float64 of weighted losses [B] and logits [B, K]."""
        return torch.cat([losses.detach().double().sum()[None], top_sums(logits, batch.labels, batch.weights)])

    def means(self, sums: Tensor) -> dict[str, float]:
        """Averages by metric name, of sums [4] over any number of samples."""
        *totals, weight = sums.tolist()
        return {name: total / max(weight, 1.0) for name, total in zip(self.schema.names, totals, strict=True)}

    def collectors(self) -> dict[str, Collector]:
        """What an evaluation keeps besides the sums."""
        return {"confusion": ConfusionCounts(self.num_classes)}
