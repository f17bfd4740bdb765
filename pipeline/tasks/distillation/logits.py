"""Distillation of logits: labels supervise CLS, the teacher's logits supervise [DIST] (DeiT, Touvron et al. 2021).

Legend: B batch, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.models.bundle import Preprocess
from pipeline.models.minivit import MiniViT
from pipeline.tasks.base import Evaluated, Outputs, Tensors
from pipeline.tasks.classification.module import Classification
from pipeline.tasks.distillation.classes import shared_classes
from pipeline.tasks.distillation.teacher import Teacher


class LogitDistillation(Classification):
    """A classifier whose loss is (1 - share) * label loss + share * teacher loss.

    With [DIST] the label loss uses the logits of CLS and the teacher loss those of [DIST], and predictions average
    both; without it, both losses use the same logits (Hinton et al. 2015). The teacher sees exactly the same images as
    the student, including mixed ones. With a `temperature` T the targets are the teacher's probabilities,
    T^2 KL(teacher / T || student / T); without it, the teacher's predicted class.
    """

    sum_names = (*Classification.sum_names, "agreed", "taught")

    def __init__(
        self,
        model: MiniViT,
        preprocess: Preprocess,
        classes: Sequence[str],
        label_smoothing: float,
        teacher: Teacher,
        share: float,
        temperature: float | None,
    ) -> None:
        super().__init__(model, preprocess, classes, label_smoothing)
        self.teacher, self.share, self.temperature = teacher, share, temperature
        self._columns = torch.tensor(shared_classes(classes, teacher.classes, teacher.spec.num_classes))

    def loss(self, views: Tensors, targets: Tensors, weights: Tensor, keys: Tensors) -> Outputs:
        images = views["image"]
        of_labels, of_teacher = self._logits(images)
        teacher_logits = self._teacher_logits(images)
        own, taught = (
            self.label_losses(of_labels, targets),
            teacher_losses(of_teacher, teacher_logits, self.temperature),
        )
        losses = torch.lerp(own, taught, self.share) * weights
        vote, unmixed = (of_labels + of_teacher) / 2, targets["label_share"] == 1
        agreed = weights * (vote.argmax(dim=-1) == teacher_logits.argmax(dim=-1))
        sums = self._sums(losses, vote, targets["label"], weights, unmixed)
        return Outputs(losses.sum()[None], torch.cat([sums, torch.stack([agreed.sum(), weights.sum()]).double()]))

    def evaluate(self, views: Tensors, targets: Tensors, weights: Tensor, keys: Tensors) -> Evaluated:
        """Evaluate only the student, against the labels."""
        sums, logits = super().evaluate(views, targets, weights, keys)
        return Evaluated(F.pad(sums, (0, 2)), logits)

    def means(self, sums: Tensor) -> dict[str, float]:
        """A classifier's measures, and in training the share of samples on which teacher and student agree."""
        *_, agreed, taught = sums.tolist()
        return super().means(sums[:-2]) | ({"agreement": agreed / taught} if taught else {})

    def _logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits fp32 [B, K] for the label loss and for the teacher loss."""
        features, heads = self.model.features(images), self.model.heads
        logits = heads["mlp_head"](features)
        distilled = heads["dist_head"](features, heads["mlp_head"], None) if "dist_head" in heads else logits
        return logits.float(), distilled.float()

    def _teacher_logits(self, images: Tensor) -> Tensor:
        """The teacher's logits for the student's classes, fp32 [B, K]."""
        logits = self.teacher.logits(images, self.model.patch_embed.proj.weight)
        if self._columns.device != logits.device:
            self._columns = self._columns.to(logits.device)
        return logits[:, self._columns]


def teacher_losses(logits: Tensor, teacher_logits: Tensor, temperature: float | None) -> Tensor:
    """Loss [B] of logits [B, K] against the teacher's [B, K]; without temperature against its predicted class."""
    if temperature is None:
        return F.cross_entropy(logits, teacher_logits.argmax(dim=-1), reduction="none")
    ours, theirs = (F.log_softmax(one / temperature, dim=-1) for one in (logits, teacher_logits))
    return F.kl_div(ours, theirs, reduction="none", log_target=True).sum(dim=-1) * temperature**2
