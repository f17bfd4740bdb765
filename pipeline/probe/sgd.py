"""A linear probe by SGD, as papers report it: momentum 0.9, cosine schedule, no weight decay, several learning rates.

All rates train at once on the same batches, drawn from all ranks' rows and identical on any number of ranks; sums are
in fp64. Legend: n rows of a rank, N of all ranks, B of a batch, D width, K classes, L learning rates.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from pipeline.models.drop_path import sample_keys
from pipeline.probe.rows import Beat, Rows, counts_of_ranks, first_row, silent, summed

MOMENTUM = 0.9
RATED_BATCH = 256  # batch size of the nominal learning rate, which scales linearly with it (Goyal et al. 2017)
ORDER = 0x5347442050726F62  # "SGD Prob": key of the order of samples


def fit_sgd(
    rows: Rows, num_classes: int, rates: Sequence[float], *, epochs: int, batch_size: int, beat: Beat = silent
) -> list[Tensor]:
    """Weights fp64 [D + 1, K] per rate, bias last, trained from 0 for `epochs` epochs. Collective.

    Calls `beat` for every batch.
    """
    device, (width, total) = rows.features.device, (rows.features.shape[1], sum(counts_of_ranks(rows.labels)))
    size = min(batch_size, total)
    scaled = torch.tensor(rates, dtype=torch.float64, device=device) * size / RATED_BATCH
    weights = torch.zeros(width + 1, len(rates), num_classes, dtype=torch.float64, device=device)
    speed, steps = torch.zeros_like(weights), epochs * (total // size)
    for step, mine in enumerate(batches(rows, total, size, epochs)):
        beat()
        gradient = summed(gradients(rows.where(mine), weights)) / size
        speed.mul_(MOMENTUM).add_(gradient)
        weights -= speed * (scaled * 0.5 * (1 + math.cos(math.pi * step / steps)))[:, None]
    return list(weights.unbind(dim=1))


def batches(rows: Rows, total: int, size: int, epochs: int) -> Iterator[Tensor]:
    """This rank's row indices in each batch, int64; drops an epoch's incomplete last batch."""
    first, count = first_row(rows.features), len(rows.labels)
    samples = torch.arange(total)
    for epoch in range(epochs):
        order = sample_keys(ORDER + epoch, samples).argsort(stable=True)
        for start in range(0, total - size + 1, size):
            chosen = order[start : start + size] - first
            yield chosen[(chosen >= 0) & (chosen < count)].to(rows.labels.device)


def gradients(rows: Rows, weights: Tensor) -> Tensor:
    """[D + 1, L, K]: gradient of the sum of these rows' cross-entropies, for each rate's weights."""
    x = rows.features.double()
    logits = torch.tensordot(x, weights[:-1], dims=1) + weights[-1]  # [B, L, K]
    errors = logits.softmax(dim=2)
    errors[torch.arange(len(x), device=x.device), :, rows.labels] -= 1
    return torch.cat([torch.tensordot(x.T, errors, dims=1), errors.sum(dim=0)[None]])


def best_rate(right: dict[float, int]) -> float:
    """The learning rate with the most correct; ties go to the smallest."""
    return max(sorted(right), key=right.__getitem__)
