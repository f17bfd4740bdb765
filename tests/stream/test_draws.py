from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.stream.draws import AUGMENT, MIX, SlotDraws

slots = st.integers(0, 2**62)


@given(st.integers(0, 2**64 - 1), slots, slots, st.integers(0, 30))
def test_a_slots_draws_do_not_depend_on_what_was_drawn_before(seed: int, slot: int, other: int, drawn: int) -> None:
    draws = SlotDraws(seed, AUGMENT)
    draws.at(other).random(drawn)
    draws.at(other).integers(10, dtype="uint32")  # leaves half a word behind, which must not reach the next slot
    expected = SlotDraws(seed, AUGMENT).at(slot)
    ours = draws.at(slot)
    assert ours.integers(10**6, dtype="uint32") == expected.integers(10**6, dtype="uint32")
    assert ours.random(5).tolist() == expected.random(5).tolist()


def test_seeds_purposes_and_slots_share_no_draws() -> None:
    first = {
        SlotDraws(seed, purpose).at(slot).random()
        for seed in (0, 1)
        for purpose in (AUGMENT, MIX)
        for slot in range(50)
    }
    assert len(first) == 200
