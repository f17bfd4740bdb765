"""kNN classification: nearest neighbours vote on the class, each with weight exp(cosine / temperature).

Wu et al. 2018, "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", as DINO evaluates (Caron et
al. 2021). Legend: Q queries, k neighbours, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.probe.rows import Beat, Rows, gathered, silent, summed
from pipeline.probe.similarity import cosine_of, nearest, row_of


def vote(cosines: Tensor, labels: Tensor, num_classes: int, temperature: float) -> Tensor:
    """The class int64 [Q] voted by neighbours with these cosines and classes [Q, k]; ties go to the first class."""
    weights = ((cosines - 1) / temperature).exp()
    votes = weights.new_zeros(len(cosines), num_classes)
    return votes.scatter_add_(1, labels, weights).argmax(dim=1)


def right_by_k(
    queries: Rows, gallery: Rows, ks: Sequence[int], num_classes: int, temperature: float, beat: Beat = silent
) -> dict[int, int]:
    """Correct queries over all ranks, by the number of neighbours that vote. Collective."""
    codes = nearest(queries.features, gallery.features, max(ks), beat)
    cosines, labels = cosine_of(codes), gathered(gallery.labels)[row_of(codes)]
    right = [
        (vote(cosines[:, :k], labels[:, :k], num_classes, temperature) == queries.labels).sum().double()[None]
        for k in ks
    ]
    return {k: int(count) for k, count in zip(ks, summed(torch.cat(right)).tolist(), strict=True)}


def best_k(right: dict[int, int]) -> int:
    """The number of neighbours with the most correct; ties go to the smallest."""
    return max(sorted(right), key=right.__getitem__)
