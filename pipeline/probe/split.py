"""The held-out part of the training data for choosing settings: the same samples on any number of ranks."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.models.drop_path import sample_keys
from pipeline.probe.limits import num_held_out
from pipeline.probe.rows import counts_of_ranks, first_row

CHOICE = 0x50726F6265  # "Probe": key of the held-out choice


def held_out(rows: Tensor) -> Tensor:
    """Bool [n] over this rank's rows: a tenth of all ranks' N, at most 10,000 and at least one. Collective."""
    total, first = sum(counts_of_ranks(rows)), first_row(rows)
    draws = sample_keys(CHOICE, torch.arange(total))
    chosen = torch.zeros(total, dtype=torch.bool)
    chosen[draws.argsort(stable=True)[: num_held_out(total)]] = True
    return chosen[first : first + len(rows)].to(rows.device)
