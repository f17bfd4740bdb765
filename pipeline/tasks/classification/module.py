"""Image classification: cross-entropy against (possibly mixed, possibly smoothed) labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.images.decode import Pixels
from pipeline.images.drawing import write_lines
from pipeline.metrics.accuracy import top_sums
from pipeline.metrics.collector import Collector
from pipeline.metrics.confusion import ConfusionCounts
from pipeline.models.bundle import Preprocess
from pipeline.models.minivit import MiniViT
from pipeline.models.spec import Pair
from pipeline.stream.batch import Batch
from pipeline.tasks.base import Compared, Evaluated, Outputs, TaskModule, Tensors

SHOWN = 3  # classes in a picture


class Classification(TaskModule):
    """A classifier of K classes. Targets: `label` and `label_mix`, int64 [B], and `label_share`, fp32 [B].

    The target of a sample is label_share * onehot(label) + (1 - label_share) * onehot(label_mix).
    """

    sum_names: tuple[str, ...] = ("loss", "right", "right_top5", "samples", "unmixed")
    any_size = True

    def __init__(self, model: MiniViT, preprocess: Preprocess, classes: Sequence[str], label_smoothing: float) -> None:
        super().__init__(model, preprocess)
        self.classes, self.label_smoothing = list(classes), label_smoothing

    def logits(self, images: Tensor) -> Tensor:
        """Normalised [B, C, H, W] -> [B, K]."""
        logits: Tensor = self.model(images)
        return logits

    def loss(self, views: Tensors, targets: Tensors, weights: Tensor, keys: Tensors) -> Outputs:
        logits = self.logits(views["image"]).float()
        losses = self.label_losses(logits, targets) * weights
        unmixed = targets["label_share"] == 1
        return Outputs(losses.sum()[None], self._sums(losses, logits, targets["label"], weights, unmixed))

    def label_losses(self, logits: Tensor, targets: Tensors) -> Tensor:
        """Cross-entropy [B] of logits [B, K] against the labels, mixed and smoothed."""
        log_probs, share = F.log_softmax(logits, dim=-1), targets["label_share"]
        own = log_probs.gather(1, targets["label"][:, None])[:, 0]
        partner = log_probs.gather(1, targets["label_mix"][:, None])[:, 0]
        target_log_prob = share * own + (1 - share) * partner
        if self.label_smoothing:
            target_log_prob = torch.lerp(target_log_prob, log_probs.mean(dim=-1), self.label_smoothing)
        return -target_log_prob

    def evaluate(self, views: Tensors, targets: Tensors, weights: Tensor, keys: Tensors) -> Evaluated:
        logits, labels = self.logits(views["image"]).float(), targets["label"]
        losses = F.cross_entropy(logits, labels, reduction="none") * weights
        return Evaluated(self._sums(losses, logits, labels, weights, torch.ones_like(labels)), logits)

    @torch.no_grad()
    def _sums(self, losses: Tensor, logits: Tensor, labels: Tensor, weights: Tensor, unmixed: Tensor) -> Tensor:
        """float64 [5] from weighted losses [B], logits [B, K] and whether samples are unmixed [B]."""
        loss, pure = losses.detach().double().sum()[None], (weights * unmixed).double().sum()[None]
        return torch.cat([loss, top_sums(logits, labels, weights), pure])

    def means(self, sums: Tensor) -> dict[str, float]:
        """Mean loss and, if no sample is mixed, accuracies: for a mixture no single class is right."""
        loss, right, right_top5, samples, unmixed = sums.tolist()
        of = max(samples, 1.0)
        shares = {"accuracy": right / of, "top5": right_top5 / of} if unmixed == samples else {}
        return {"loss": loss / of, **shares}

    def collectors(self, *, validation: bool) -> dict[str, Collector]:
        return {} if validation else {"confusion": ConfusionCounts(len(self.classes))}

    def mistakes(self, predicted: Tensor, batch: Batch) -> Tensor:
        """The cross-entropy if the most likely class is wrong, otherwise 0."""
        labels, logits = batch.targets["label"], predicted.float()
        return F.cross_entropy(logits, labels, reduction="none") * (logits.argmax(dim=-1) != labels)

    def compared(self, predicted: Tensor, batch: Batch, row: int) -> Compared:
        truth = self.classes[int(batch.targets["label"][row])]
        (guess,) = self._likeliest(predicted[row : row + 1], SHOWN)
        taken = "correct" if guess[0][0] == truth else f"predicted as {guess[0][0]}"
        return Compared(None, [(truth, 1.0)], guess, f"{truth}, {taken} ({guess[0][1]:.0%})")

    def predict(self, images: Tensor, sizes: Sequence[Pair], **options: Any) -> list[list[tuple[str, float]]]:
        """The `top_k` (default 5) most probable (class, probability) pairs of each image."""
        return self._likeliest(self.logits(images), options.get("top_k", 5))

    def _likeliest(self, logits: Tensor, count: int) -> list[list[tuple[str, float]]]:
        """The (at most) `count` most probable classes of logits [B, K] with their probabilities."""
        top = logits.float().softmax(dim=-1).topk(min(count, len(self.classes)), dim=-1)
        return [
            [(self.classes[index], value) for index, value in zip(indices, values, strict=True)]
            for indices, values in zip(top.indices.tolist(), top.values.tolist(), strict=True)
        ]

    def draw(self, picture: Pixels, predicted: Sequence[tuple[str, float]]) -> Pixels:
        """Write the most likely classes in a corner."""
        return write_lines(picture, [f"{name} {share:.0%}" for name, share in predicted[:SHOWN]])

    def record(self, predicted: Sequence[tuple[str, float]]) -> dict[str, Any]:
        """`classes`: name -> probability, best first."""
        return {"classes": dict(predicted)}

    def summarise(self, images: Tensor, sizes: Sequence[Pair], limit: int) -> list[dict[str, float]]:
        return [dict(pairs) for pairs in self.predict(images, sizes, top_k=limit)]
