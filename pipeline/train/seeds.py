"""Seeds for the random draws in training, each from its own key."""

from __future__ import annotations

import hashlib
import json

import numpy as np

# Each takes the place of the step in a key, so no step shares its seed. The stream's draws use a different kind of key.
INITIAL_WEIGHTS, DROP_PATH, PATCH, COUPLED = (2**63 + purpose for purpose in range(4))


def derive_seed(*key: int) -> int:
    """A 64-bit seed that depends on every number of the key."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])


def stage_seed(seed: int, stage_id: str) -> int:
    """Stages draw independently of each other, each the same in every run of a config."""
    digest = hashlib.sha256(json.dumps([seed, stage_id]).encode()).digest()
    return int.from_bytes(digest[:4], "little")
