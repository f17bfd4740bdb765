"""Contrastive losses for pairs of images and texts: each is pulled to its partner, away from the rest of the batch.

The negatives come from the global batch, without samples of weight 0 and those with an equal caption.

Legend: n pairs of this rank, N of all ranks, E embedding width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pipeline.tasks.ranks import Ranks

AT_ONCE = 1 << 24  # similarities held at once

LossOfRows = Callable[["EmbeddedPairs", "EmbeddedPairs", Tensor, Tensor | None], Tensor]


class EmbeddedPairs(NamedTuple):
    """Unit embeddings, fp32 [n, E]; captions, int64 [n], which are equal for equal texts; weights, fp32 [n]."""

    images: Tensor
    texts: Tensor
    captions: Tensor
    weights: Tensor

    def gathered(self, ranks: Ranks) -> EmbeddedPairs:
        return EmbeddedPairs(*(ranks.gather(values) for values in self))


def contrastive(loss: LossOfRows, pairs: EmbeddedPairs, scale: Tensor, bias: Tensor | None, ranks: Ranks) -> Tensor:
    """This rank's part of the mean over all pairs of `softmax_loss` or `sigmoid_loss`, fp32 [].

    Rows of similarities are computed in chunks and recomputed in the backward pass, so that memory grows linearly with
    the number of pairs, not quadratically.
    """
    others = pairs.gathered(ranks)
    rows = max(AT_ONCE // max(len(others.weights), 1), 1)
    parts = [EmbeddedPairs(*part) for part in zip(*(values.split(rows) for values in pairs), strict=True)]
    if len(parts) == 1:
        losses = [loss(parts[0], others, scale, bias)]
    else:
        losses = [_recomputed(loss, part, others, scale, bias) for part in parts]
    return torch.stack([*losses, scale.new_zeros(())]).sum() / others.weights.sum().clamp(min=1)


def softmax_loss(pairs: EmbeddedPairs, others: EmbeddedPairs, scale: Tensor, bias: Tensor | None) -> Tensor:
    """CLIP's loss (Radford et al. 2021): the sum over pairs of the mean of both directions' cross-entropies."""
    own = scale * (pairs.images * pairs.texts).sum(dim=1)  # [n]
    ignored = ~negatives(pairs, others)
    total = torch.zeros_like(own)
    for mine, theirs in ((pairs.images, others.texts), (pairs.texts, others.images)):
        wrong = (scale * mine @ theirs.T).masked_fill(ignored, -torch.inf)
        total = total + torch.cat([own[:, None], wrong], dim=1).logsumexp(dim=1) - own
    return total @ pairs.weights / 2


def sigmoid_loss(pairs: EmbeddedPairs, others: EmbeddedPairs, scale: Tensor, bias: Tensor | None) -> Tensor:
    """SigLIP's loss (Zhai et al. 2023): an independent binary classification of every image and text as a pair."""
    assert bias is not None
    own = scale * (pairs.images * pairs.texts).sum(dim=1) + bias
    wrong = scale * pairs.images @ others.texts.T + bias
    refused = F.softplus(wrong).masked_fill(~negatives(pairs, others), 0).sum(dim=1)
    return (F.softplus(-own) + refused) @ pairs.weights


def negatives(pairs: EmbeddedPairs, others: EmbeddedPairs) -> Tensor:
    """Bool [n, N]: which other texts are negatives for an image, and which other images for a text."""
    return (pairs.captions[:, None] != others.captions) & (others.weights > 0)


LOSSES: dict[str, LossOfRows] = {"softmax": softmax_loss, "sigmoid": sigmoid_loss}


def _recomputed(loss: LossOfRows, *arguments: Any) -> Tensor:
    found: Tensor = checkpoint(loss, *arguments, use_reentrant=False)
    return found
