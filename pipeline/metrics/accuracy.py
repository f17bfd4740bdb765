"""Classification accuracy: sums over samples, which add up over micro-batches, ranks and restarts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.metrics.schema import LOSS, Measure, Schema

if TYPE_CHECKING:
    from torch import Tensor

TOP = 5
ACCURACY = Measure("accuracy", "Accuracy", "higher", share=True)
TOP5 = Measure("top5", "Top-5 accuracy", "higher", share=True)
KNN = Measure("knn", "kNN accuracy", "higher", share=True)  # of frozen features
ACCURACIES = (ACCURACY.name, TOP5.name, KNN.name)  # proportions of independent samples
CLASSIFICATION = Schema((LOSS, ACCURACY, TOP5), selects="accuracy")


def top_sums(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """float64 [3]: the weighted number of samples that are right, right within the top 5, and in total.

    Args:
        logits: [B, K].
        labels: int64 [B].
        weights: float32 [B].
    """
    import torch

    hits = logits.topk(min(TOP, logits.shape[-1]), dim=-1).indices == labels[:, None]  # [B, k]
    per_sample = torch.stack([hits[:, 0], hits.any(dim=-1), torch.ones_like(hits[:, 0])], dim=1)
    return (per_sample * weights[:, None]).double().sum(dim=0)
