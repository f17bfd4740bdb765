from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.models.mask_ratio import num_masked


@given(st.integers(2, 10_000), st.floats(0.01, 0.99))
def test_the_ratio_is_met_to_the_nearest_patch(patches: int, ratio: float) -> None:
    masked = num_masked(patches, ratio)
    assert 1 <= masked < patches
    assert abs(masked - ratio * patches) <= max(0.5, 1 - ratio * patches, 1 - (1 - ratio) * patches) + 1e-9
