from __future__ import annotations

import torch

from pipeline.train.seeds import DROP_PATH, INITIAL_WEIGHTS, PATCH, derive_seed


def test_seeds_depend_on_every_part_of_the_key() -> None:
    keys = [(seed, step, rank) for seed in range(3) for step in range(3) for rank in range(3)]
    keys += [(0, purpose) for purpose in (INITIAL_WEIGHTS, DROP_PATH, PATCH)]
    seeds = [derive_seed(*key) for key in keys]
    assert len(set(seeds)) == len(keys)
    assert seeds == [derive_seed(*key) for key in keys]
    assert all(0 <= seed < 2**64 for seed in seeds)
    torch.manual_seed(max(seeds))  # torch takes the whole range
