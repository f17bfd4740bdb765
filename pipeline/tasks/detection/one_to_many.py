"""Training with many candidates per object: those near its centre whose anchors fit (ATSS, Zhang et al. 2020).

The assignment depends only on locations and labels, so the number of positive candidates that normalises a batch's loss
is known before any forward pass. Scores learn the overlap of their boxes (quality focal loss, Li et al. 2020).

Legend: B samples, A candidates, K classes, n objects of all samples.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.models.heads._boxes import COORDINATES
from pipeline.models.heads.head import Features
from pipeline.models.heads.pyramid import level_grid
from pipeline.models.heads.pyramid.module import PyramidHead
from pipeline.models.spec import Pair
from pipeline.tasks.detection.objects import Objects, overlaps, to_corners

NEAREST = 9  # locations considered on each level
ANCHOR = 4.0  # side of the anchor box of a location, in strides
OF_OVERLAP = 2.0


class OneToManyLoss:
    """The loss over all candidates, several of which belong to one object; one term."""

    terms = ("positives",)

    def __init__(self, head: PyramidHead, num_classes: int) -> None:
        self._head, self.num_classes = head, num_classes

    def normalisers(self, objects: Objects, weights: Tensor, grid: Pair) -> Tensor:
        """float64 [1]: candidates with an object."""
        chosen = self._chosen(objects, len(weights), grid)
        return ((chosen >= 0).sum(dim=1).double() @ weights.double())[None]

    def losses(
        self, head: PyramidHead, features: Features, objects: Objects, weights: Tensor, keys: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Loss fp32 [1], not normalised yet, and the candidates."""
        found = head(features)
        boxes, logits = found.tensor_split([COORDINATES], dim=2)
        chosen = self._chosen(objects, len(weights), features.grid)
        samples, candidates = (chosen >= 0).nonzero(as_tuple=True)
        own = chosen[samples, candidates]
        iou, giou = overlaps(to_corners(boxes[samples, candidates]), objects.corners[own])
        quality = torch.zeros_like(logits)
        quality[samples, candidates, objects.labels[own]] = iou.detach()
        wrong = (logits.detach().sigmoid() - quality).square()
        of_class = (F.binary_cross_entropy_with_logits(logits, quality, reduction="none") * wrong).sum(dim=(1, 2))
        of_overlap = ((1 - giou) * weights[samples]).sum()
        return (of_class @ weights + OF_OVERLAP * of_overlap)[None], found

    def _chosen(self, objects: Objects, samples: int, grid: Pair) -> Tensor:
        places = self._head.places(grid, objects.corners.device)
        counts = [down * across for down, across in (level_grid(grid, level) for level in self._head.numbers)]
        return chosen_objects(objects, samples, places, counts)


def chosen_objects(objects: Objects, samples: int, places: Tensor, counts: Sequence[int]) -> Tensor:
    """The object of each candidate, int64 [B, A], -1 for none.

    On each level, the locations nearest to an object's centre are considered. An object's candidates are those that lie
    inside it and whose anchor's IoU with it is at least the mean plus a standard deviation over all considered ones;
    at least the best one. A location that fits several objects is assigned to the one it fits best.

    `places` holds (x, y) and the horizontal and vertical strides, fp32 [A, 4], level by level; `counts` is the number
    of places per level.
    """
    found = torch.full((samples, len(places)), -1, device=places.device)
    if not len(objects.labels):
        return found
    corners, (middles, strides) = objects.corners, places.split(2, dim=1)
    away = (((corners[:, None, :2] + corners[:, None, 2:]) / 2 - middles) / strides).square().sum(dim=2)  # [n, A]
    starts = [0, *torch.tensor(list(counts)).cumsum(0).tolist()][:-1]
    looked_at = torch.cat(
        [
            level.topk(min(NEAREST, count), dim=1, largest=False).indices + start
            for level, start, count in zip(away.split(list(counts), dim=1), starts, counts, strict=True)
        ],
        dim=1,
    )  # [n, k]
    anchors = to_corners(torch.cat([middles, ANCHOR * strides], dim=1))
    iou, _ = overlaps(anchors[looked_at], corners[:, None])
    spot = middles[looked_at]
    inside = ((spot > corners[:, None, :2]) & (spot < corners[:, None, 2:])).all(dim=2)
    fits = iou >= iou.mean(dim=1, keepdim=True) + iou.std(dim=1, keepdim=True, unbiased=False)
    fits &= inside
    best = iou.max(dim=1).indices
    fits[torch.arange(len(best), device=best.device), best] |= ~fits.any(dim=1)
    rows, columns = fits.nonzero(as_tuple=True)
    order = iou[rows, columns].argsort(stable=True)  # the best comes last and wins
    rows, columns = rows[order], columns[order]
    where = objects.owners[rows] * len(places) + looked_at[rows, columns]
    ranks = torch.full((found.numel(),), -1, device=places.device)
    ranks.scatter_reduce_(0, where, torch.arange(len(where), device=places.device), "amax")
    flat = found.view(-1)
    taken = ranks >= 0
    flat[taken] = rows[ranks[taken]]
    return found
