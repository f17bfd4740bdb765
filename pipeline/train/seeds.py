"""Seeds for what is drawn in training, each from a key of its own."""

from __future__ import annotations

import numpy as np

# Each stands for the step in a key, so that no step shares its seed. The stream's draws have keys of another kind.
INITIAL_WEIGHTS, DROP_PATH, PATCH, COUPLED = (2**63 + purpose for purpose in range(4))


def derive_seed(*key: int) -> int:
    """A 64-bit seed that depends on every number of the key."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])
