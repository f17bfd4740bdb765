"""Cosine similarities whose order is the same on any number of ranks, ties included.

Products are summed in fp64 and rounded to multiples of 2^-24, so that the way in which a product was cut up does not
show; of equal similarities the earlier row comes first. Legend: Q queries, M rows of a gallery, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.probe.rows import Beat, blocks_of_all, silent

QUERIES_AT_ONCE = 512
LAST_ROW = (1 << 32) - 1
STEPS = 1 << 24  # that a cosine can take from 0 to 1: about the precision of fp32


def ranked(queries: Tensor, gallery: Tensor, first: int = 0) -> Tensor:
    """Unit rows fp64 [Q, D] and [M, D] -> int64 [Q, M]: codes that grow with similarity, and else towards the front.

    `first` is the number of the gallery's first row.
    """
    codes = (queries @ gallery.T).mul_(STEPS).round_().long() << 32
    codes += LAST_ROW - torch.arange(first, first + len(gallery), device=codes.device)
    return codes


def row_of(codes: Tensor) -> Tensor:
    """The row that each code is of, int64."""
    return LAST_ROW - (codes & LAST_ROW)


def cosine_of(codes: Tensor) -> Tensor:
    """The similarity that each code stands for, fp64."""
    return (codes >> 32).double() / STEPS


def unit(features: Tensor) -> Tensor:
    """fp64, at length 1; a feature of zeros stays."""
    return F.normalize(features.double(), dim=1)


def nearest(queries: Tensor, gallery: Tensor, k: int, beat: Beat = silent) -> Tensor:
    """Codes int64 [Q, k] of the `k` rows of all ranks' galleries most similar to each of this rank's queries.

    Both are features fp32 [., D] of this rank. The most similar comes first. Collective.
    """
    asked = unit(queries)
    best = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    for first, block in blocks_of_all(gallery):
        rows, found = unit(block), []
        for some, known in zip(asked.split(QUERIES_AT_ONCE), best.split(QUERIES_AT_ONCE), strict=True):
            beat()
            codes = torch.cat([known, ranked(some, rows, first).topk(min(k, len(rows))).values], dim=1)
            found.append(codes.topk(min(k, codes.shape[1])).values)
        best = torch.cat(found)
    return best
