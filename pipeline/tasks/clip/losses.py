"""What pairs of images and texts are trained by: each is to be nearer to its own than to the rest of the global batch.

Images with equal captions are no negatives of each other's texts, nor are samples of weight 0.

Legend: n pairs of this rank, N of all ranks, E width of the embeddings.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pipeline.tasks.ranks import Ranks

AT_ONCE = 1 << 24  # similarities that are held at once

LossOfRows = Callable[["Pairs", "Pairs", Tensor, Tensor | None], Tensor]


class Pairs(NamedTuple):
    """Embeddings of length 1, fp32 [n, E]; captions, int64 [n], are equal where the texts are; weights fp32 [n]."""

    images: Tensor
    texts: Tensor
    captions: Tensor
    weights: Tensor

    def gathered(self, ranks: Ranks) -> Pairs:
        return Pairs(*(ranks.gather(values) for values in self))


def contrastive(loss: LossOfRows, pairs: Pairs, scale: Tensor, bias: Tensor | None, ranks: Ranks) -> Tensor:
    """This rank's part of the mean over all pairs of `softmax_loss` or `sigmoid_loss`, fp32 [].

    Rows of similarities are computed so many at once, and again in the backward pass, that memory grows with the number
    of pairs and not with its square.
    """
    others = pairs.gathered(ranks)
    rows = max(AT_ONCE // max(len(others.weights), 1), 1)
    parts = [Pairs(*part) for part in zip(*(values.split(rows) for values in pairs), strict=True)]
    if len(parts) == 1:
        losses = [loss(parts[0], others, scale, bias)]
    else:
        losses = [_recomputed(loss, part, others, scale, bias) for part in parts]
    return torch.stack([*losses, scale.new_zeros(())]).sum() / others.weights.sum().clamp(min=1)


def softmax_loss(pairs: Pairs, others: Pairs, scale: Tensor, bias: Tensor | None) -> Tensor:
    """CLIP's (Radford et al. 2021): the sum over pairs of the mean of both directions' cross-entropies."""
    own = scale * (pairs.images * pairs.texts).sum(dim=1)  # [n]
    ignored = ~negatives(pairs, others)
    total = torch.zeros_like(own)
    for mine, theirs in ((pairs.images, others.texts), (pairs.texts, others.images)):
        wrong = (scale * mine @ theirs.T).masked_fill(ignored, -torch.inf)
        total = total + torch.cat([own[:, None], wrong], dim=1).logsumexp(dim=1) - own
    return total @ pairs.weights / 2


def sigmoid_loss(pairs: Pairs, others: Pairs, scale: Tensor, bias: Tensor | None) -> Tensor:
    """SigLIP's (Zhai et al. 2023): every image and every text are a pair or none, each a question of its own."""
    assert bias is not None
    own = scale * (pairs.images * pairs.texts).sum(dim=1) + bias
    wrong = scale * pairs.images @ others.texts.T + bias
    refused = F.softplus(wrong).masked_fill(~negatives(pairs, others), 0).sum(dim=1)
    return (F.softplus(-own) + refused) @ pairs.weights


def negatives(pairs: Pairs, others: Pairs) -> Tensor:
    """Bool [n, N]: which other texts an image must be told from, and which other images a text."""
    return (pairs.captions[:, None] != others.captions) & (others.weights > 0)


LOSSES: dict[str, LossOfRows] = {"softmax": softmax_loss, "sigmoid": sigmoid_loss}


def _recomputed(loss: LossOfRows, *arguments: Any) -> Tensor:
    found: Tensor = checkpoint(loss, *arguments, use_reentrant=False)
    return found
