"""A linear probe: multinomial logistic regression on standardised features, by L-BFGS (Liu and Nocedal 1989).

The objective over N samples is mean cross-entropy + l2 / 2 * |W|^2; scikit-learn's C is 1 / (l2 * N). Sums run in fp64
over all ranks, so that the solution matches a single rank's to the last few bits. Legend: n rows of a rank, N of all
ranks, D width, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.probe.rows import Beat, Rows, silent, summed

CELLS_AT_ONCE = 1 << 22  # fp64 values held besides the features
GRADIENT_TOLERANCE = 1e-5  # on its largest component
LOSS_TOLERANCE = 1e-10
HISTORY = 10
FLAT = 1e-12  # variance below which a feature counts as constant


def standardiser(features: Tensor) -> Callable[[Tensor], Tensor]:
    """A function that standardises features by the mean and variance of all ranks' `features` fp32 [n, D]. Collective.

    It replaces the BatchNorm in front of other linear probes (He et al. 2022); a constant feature becomes 0.
    """
    sums = torch.zeros(features.shape[1] + 1, dtype=torch.float64, device=features.device)
    for block in _blocks(features):
        sums[:-1] += block.double().sum(dim=0)
    sums[-1] = len(features)
    *_, total = sums = summed(sums)
    mean = sums[:-1] / total
    squares = torch.zeros_like(mean)
    for block in _blocks(features):
        squares += (block.double() - mean).square().sum(dim=0)
    variance = summed(squares) / total
    scale = torch.where(variance > FLAT, variance.clamp_min(FLAT).rsqrt(), 0.0)

    def standardise(rows: Tensor) -> Tensor:
        return torch.cat([((block.double() - mean) * scale).float() for block in _blocks(rows)] or [rows])

    return standardise


def fit(
    rows: Rows, num_classes: int, l2: float, max_iterations: int, start: Tensor | None = None, beat: Beat = silent
) -> Tensor:
    """The weights fp64 [D + 1, K], bias last, fitted to all ranks' rows, starting from `start` or 0.

    Calls `beat` on every pass over the data. Collective.
    """
    shape = rows.features.shape[1] + 1, num_classes
    weights = torch.zeros(shape, dtype=torch.float64, device=rows.features.device) if start is None else start.clone()
    total = int(summed(torch.tensor([len(rows.labels)], device=weights.device)))
    search = torch.optim.LBFGS(
        [weights.requires_grad_()],
        max_iter=max_iterations,
        max_eval=2 * max_iterations,
        tolerance_grad=GRADIENT_TOLERANCE,
        tolerance_change=LOSS_TOLERANCE,
        history_size=HISTORY,
        line_search_fn="strong_wolfe",
    )

    @torch.no_grad()
    def objective() -> float:
        beat()
        loss, weights.grad = loss_and_gradient(rows, weights, total, l2)
        return float(loss)

    search.step(objective)
    return weights.detach()


def loss_and_gradient(rows: Rows, weights: Tensor, total: int, l2: float) -> tuple[Tensor, Tensor]:
    """The objective at `weights` over all ranks' `total` rows, and its gradient [D + 1, K]. Collective."""
    sums = torch.zeros(weights.numel() + 1, dtype=torch.float64, device=weights.device)
    gradient = sums[1:].view_as(weights)
    for features, labels in zip(_blocks(rows.features), _blocks(rows.labels, like=rows.features), strict=True):
        x = features.double()
        logits = torch.addmm(weights[-1], x, weights[:-1])
        sums[0] += F.cross_entropy(logits, labels, reduction="sum")
        errors = logits.softmax(dim=1)
        errors[torch.arange(len(labels), device=labels.device), labels] -= 1
        gradient[:-1].addmm_(x.T, errors)
        gradient[-1] += errors.sum(dim=0)
    sums = summed(sums) / total
    loss, gradient = sums[0], sums[1:].view_as(weights)
    gradient[:-1] += l2 * weights[:-1]
    return loss + l2 / 2 * weights[:-1].square().sum(), gradient


def classes_of(features: Tensor, weights: Tensor) -> Tensor:
    """The most likely class int64 [n] of features fp32 [n, D]; ties go to the first."""
    found = [torch.addmm(weights[-1], block.double(), weights[:-1]).argmax(dim=1) for block in _blocks(features)]
    return torch.cat(found) if found else torch.empty(0, dtype=torch.int64, device=features.device)


def num_right(rows: Rows, weights: Tensor) -> int:
    """Correctly classified rows over all ranks. Collective."""
    return int(summed((classes_of(rows.features, weights) == rows.labels).sum()[None]))


def best_l2(right: dict[float, int]) -> float:
    """The regularisation with the most correct; ties go to the strongest."""
    return max(sorted(right, reverse=True), key=right.__getitem__)


def _blocks(rows: Tensor, like: Tensor | None = None) -> Iterator[Tensor]:
    """A rank's rows in blocks, split as `like` would be."""
    width = (rows if like is None else like).shape[1]
    return iter(rows.split(max(CELLS_AT_ONCE // width, 1)) if len(rows) else ())
