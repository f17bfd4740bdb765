from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.training import ResolutionConfig
from pipeline.stream.resolution import size_at

RANDOM = ResolutionConfig(mode="random", sizes=[24, 28, 32])
PROGRESSIVE = ResolutionConfig(mode="progressive", sizes=[16, 24, 32])


def test_fixed_is_the_base_size() -> None:
    assert size_at(5, 10, (28, 56), ResolutionConfig(), seed=0) == (28, 56)


@given(st.integers(1, 500))
def test_progressive_rises_through_all_sizes_in_equal_parts(total: int) -> None:
    sides = [size_at(step, total, (28, 28), PROGRESSIVE, seed=0)[0] for step in range(total)]
    assert sides == sorted(sides)
    if total >= 3:
        counts = Counter(sides).values()
        assert len(counts) == 3
        assert max(counts) - min(counts) <= 1


def test_progressive_stays_at_the_last_size_beyond_the_end() -> None:
    assert size_at(10, 10, (28, 28), PROGRESSIVE, seed=0) == (32, 32)


def test_random_draws_every_size_and_depends_on_seed_and_step_alone() -> None:
    drawn = [size_at(step, 10, (28, 28), RANDOM, seed=1) for step in range(60)]
    assert set(drawn) == {(24, 24), (28, 28), (32, 32)}
    assert drawn == [size_at(step, 999, (28, 28), RANDOM, seed=1) for step in range(60)]
    assert drawn != [size_at(step, 10, (28, 28), RANDOM, seed=2) for step in range(60)]


def test_sizes_keep_the_proportion_of_the_base() -> None:
    assert size_at(0, 9, (28, 56), PROGRESSIVE, seed=0) == (16, 32)
