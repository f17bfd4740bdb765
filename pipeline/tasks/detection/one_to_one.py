"""Training with one candidate per object: Hungarian matching (DETR, Carion et al. 2020), with denoising.

Legend: B samples, Q queries, M denoising queries, K classes; class K is the background.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from pipeline.models.drop_path import keyed_uniform, sample_keys
from pipeline.models.heads._boxes import COORDINATES
from pipeline.models.heads.head import Features
from pipeline.models.heads.queries.module import Denoising, QueriesHead
from pipeline.models.spec import Pair
from pipeline.tasks.detection.objects import Objects, overlaps, to_corners, to_middles

OF_CLASS, OF_SIDES, OF_OVERLAP = 1.0, 5.0, 2.0  # weights of the losses and of the matching costs
BACKGROUND = 0.1  # weight of a query without an object
NOISE = 0.4  # maximum shift and scaling of a box, relative to its sides
FLIPPED = 0.2  # share of denoising queries that start with a random class
NUMBERS = 6  # random numbers per denoising query
DENOISE = 0x646E6F69  # makes these draws independent of other draws with the same keys


class MatchedPairs(NamedTuple):
    """Candidates and their target objects, int64 [pairs] each."""

    samples: Tensor
    candidates: Tensor
    objects: Tensor


class OneToOneLoss:
    """The loss of all layers' candidates. Its terms are for matched queries and, if any, denoising queries."""

    def __init__(self, num_classes: int, num_queries: int, copies: int) -> None:
        self.num_classes, self.num_queries, self.copies = num_classes, num_queries, copies
        self.terms = ("matched", "denoised") if copies else ("matched",)

    def normalisers(self, objects: Objects, weights: Tensor, grid: Pair) -> Tensor:
        """float64 [T]: the number of matched objects, at most one per query in each image, and of their copies."""
        counts = torch.tensor(objects.counts, dtype=torch.float64).clamp(max=self.num_queries)
        matched = counts.to(weights.device) @ weights.double()
        return torch.stack([matched, matched * self.copies][: len(self.terms)])

    def losses(
        self, head: QueriesHead, features: Features, objects: Objects, weights: Tensor, keys: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Losses fp32 [T], not normalised yet, and the last layer's candidates. Denoising needs keys."""
        noise, known = None, None
        if self.copies and keys is not None:
            noise, known = noisy(objects, keys, self.copies, self.num_classes, self.num_queries)
        layers = head(features, noise, True)  # a single call, so that ZeRO-3 gathers the head's own parameters
        losses = [self._of_layer(found, objects, weights, known) for found in layers]
        return torch.stack(losses).mean(dim=0), layers[-1][:, : self.num_queries]

    def _of_layer(self, found: Tensor, objects: Objects, weights: Tensor, known: MatchedPairs | None) -> Tensor:
        """Losses fp32 [T] of candidates [B, Q + M, 4 + K + 1]."""
        queries, noisy_ones = found.tensor_split([self.num_queries], dim=1)
        pairs = matched(queries.detach(), objects)
        classes = torch.full(queries.shape[:2], self.num_classes, device=found.device)
        classes[pairs.samples, pairs.candidates] = objects.labels[pairs.objects]
        each = F.cross_entropy(queries[..., COORDINATES:].transpose(1, 2), classes, reduction="none")  # [B, Q]
        counted = torch.where(classes == self.num_classes, BACKGROUND, 1.0) * weights[:, None]
        terms = [OF_CLASS * (each * counted).sum() + box_loss(queries, objects, pairs, weights)]
        if known is not None:
            logits = noisy_ones[known.samples, known.candidates, COORDINATES:]
            each = F.cross_entropy(logits, objects.labels[known.objects], reduction="none")
            of_class = OF_CLASS * (each * weights[known.samples]).sum()
            terms.append(of_class + box_loss(noisy_ones, objects, known, weights))
        elif self.copies:
            terms.append(found.new_zeros(()))
        return torch.stack(terms)


def box_loss(candidates: Tensor, objects: Objects, pairs: MatchedPairs, weights: Tensor) -> Tensor:
    """L1 loss of middles and sides plus GIoU loss over all pairs; fp32 []."""
    boxes, corners = candidates[pairs.samples, pairs.candidates, :COORDINATES], objects.corners[pairs.objects]
    of_sides = (boxes - to_middles(corners)).abs().sum(dim=1)
    _, giou = overlaps(to_corners(boxes), corners)
    return ((OF_SIDES * of_sides + OF_OVERLAP * (1 - giou)) * weights[pairs.samples]).sum()


def matched(queries: Tensor, objects: Objects) -> MatchedPairs:
    """The minimum-cost matching of queries [B, Q, 4 + K + 1] and objects: min(queries, objects) pairs per sample."""
    boxes, shares = queries[..., :COORDINATES], queries[..., COORDINATES:].softmax(dim=-1)
    own = objects.owners
    _, giou = overlaps(to_corners(boxes)[own], objects.corners[:, None])  # [n, Q]
    of_sides = (boxes[own] - to_middles(objects.corners)[:, None]).abs().sum(dim=2)
    of_class = shares[own].gather(2, objects.labels[:, None, None].expand(-1, shares.shape[1], 1))[..., 0]
    cost = (OF_SIDES * of_sides - OF_CLASS * of_class - OF_OVERLAP * giou).cpu().numpy()
    found: list[tuple[int, int, int]] = []
    for sample, (start, count) in enumerate(zip(objects.starts, objects.counts, strict=True)):
        rows, columns = linear_sum_assignment(cost[start : start + count])
        found += [(sample, column, start + row) for row, column in zip(rows.tolist(), columns.tolist(), strict=True)]
    pairs = torch.tensor(found, dtype=torch.int64).view(-1, 3).to(queries.device)
    return MatchedPairs(*pairs.unbind(dim=1))


def noisy(objects: Objects, keys: Tensor, copies: int, num_classes: int, most: int) -> tuple[Denoising, MatchedPairs]:
    """Denoising queries for the first `most` objects of each sample, and the target object of each.

    The draws depend only on the samples' keys, int64 [B]: the j-th object's copies have the same position in a key's
    stream, whatever else is in the batch.
    """
    counts = torch.tensor(objects.counts, device=keys.device).clamp(max=most)
    longest = max([*(min(count, most) for count in objects.counts), 0])
    number = torch.arange(longest * copies, device=keys.device)
    valid = number // copies < counts[:, None]  # [B, M]
    uniform = keyed_uniform(sample_keys(DENOISE, keys), longest * copies * NUMBERS)  # [M * NUMBERS, B]
    u = uniform.T.view(len(keys), -1, NUMBERS)
    starts = torch.tensor(objects.starts, device=keys.device)
    rows = (starts[:, None] + number // copies).where(valid, 0)
    if not len(objects.labels):
        blank = u.new_zeros(*valid.shape, COORDINATES)
        empty = rows.new_zeros(0)
        return Denoising(blank, rows, rows), MatchedPairs(empty, empty, empty)
    middles = to_middles(objects.corners)[rows]  # [B, M, 4]
    sides = middles[..., 2:]
    moved = middles[..., :2] + (2 * u[..., :2] - 1) * NOISE * sides / 2
    boxes = torch.cat([moved, sides * (1 + (2 * u[..., 2:4] - 1) * NOISE)], dim=2).clamp(0, 1)
    any_class = (u[..., 5] * num_classes).long().clamp(max=num_classes - 1)
    labels = torch.where(u[..., 4] < FLIPPED, any_class, objects.labels[rows])
    groups = (number % copies).expand_as(rows).where(valid, -1)
    samples, candidates = valid.nonzero(as_tuple=True)
    return Denoising(boxes, labels, groups), MatchedPairs(samples, candidates, rows[samples, candidates])
