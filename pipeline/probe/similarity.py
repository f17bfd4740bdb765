"""Cosine similarities whose order, including ties, is the same on any number of ranks.

Products are summed in fp64 and rounded to multiples of 2^-24, so that the result does not depend on how a product was
split; on ties the earlier row comes first. Legend: Q queries, M rows of a gallery, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.probe.rows import Beat, blocks_of_all, silent

QUERIES_AT_ONCE = 512
LAST_ROW = (1 << 32) - 1
STEPS = 1 << 24  # quantisation of a cosine from 0 to 1: about the precision of fp32


def ranked(queries: Tensor, gallery: Tensor, first: int = 0) -> Tensor:
    """Unit rows fp64 [Q, D] and [M, D] -> int64 [Q, M]: codes that grow with similarity; on ties, earlier rows win.

    `first` is the number of the gallery's first row.
    """
    codes = (queries @ gallery.T).mul_(STEPS).round_().long() << 32
    codes += LAST_ROW - torch.arange(first, first + len(gallery), device=codes.device)
    return codes


def row_of(codes: Tensor) -> Tensor:
    """The row of each code, int64."""
    return LAST_ROW - (codes & LAST_ROW)


def cosine_of(codes: Tensor) -> Tensor:
    """The similarity of each code, fp64."""
    return (codes >> 32).double() / STEPS


def unit(features: Tensor) -> Tensor:
    """Features in fp64, scaled to length 1; an all-zero feature stays zero."""
    return F.normalize(features.double(), dim=1)


def nearest(queries: Tensor, gallery: Tensor, k: int, beat: Beat = silent) -> Tensor:
    """Codes int64 [Q, k] of the `k` rows in all ranks' galleries most similar to each of this rank's queries.

    Both inputs are this rank's features fp32 [., D]. The most similar row comes first. Collective.
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
