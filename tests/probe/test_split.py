from __future__ import annotations

import pytest
import torch

from pipeline.probe.limits import num_held_out
from pipeline.probe.split import held_out

pytestmark = pytest.mark.usefixtures("one_rank")


@pytest.mark.parametrize(("total", "held"), [(1, 1), (9, 1), (600, 60), (60_000, 6_000), (1_281_167, 10_000)])
def test_a_tenth_but_no_more_than_ten_thousand(total: int, held: int) -> None:
    assert num_held_out(total) == held


def test_the_same_samples_every_time_and_spread_over_the_data() -> None:
    chosen = held_out(torch.empty(1000, 0))
    assert chosen.sum() == 100
    assert chosen.equal(held_out(torch.empty(1000, 0)))
    assert all(5 <= part.sum() <= 40 for part in chosen.split(200))
