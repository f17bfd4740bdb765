from __future__ import annotations

import pytest
import torch

from pipeline.errors import DataError
from pipeline.stream.batch import Batch
from pipeline.train.first_samples import ENOUGH, FirstSamples

CPU = torch.device("cpu")


def batch(good: int, *reasons: str) -> Batch:
    size = good + len(reasons)
    labels, weights = torch.zeros(size, dtype=torch.int64), (torch.arange(size) < good).float()
    images = torch.zeros(size, 1, 2, 2, dtype=torch.uint8)
    return Batch({"image": images}, {}, weights, labels, [""] * size, 0, reasons)


@pytest.mark.usefixtures("one_rank")
def test_stand_ins_alone_stop_the_run_with_the_reasons() -> None:
    first = FirstSamples("pretrain", CPU)
    reasons = ["no label member (found png)"] * 5 + ["no image member (found cls)"] * 3
    with pytest.raises(DataError, match=r"^pretrain: all of the first 8 samples are bad: no label member in 5, no im"):
        first.look_collective(batch(0, *reasons), last=False)


@pytest.mark.usefixtures("one_rank")
def test_one_good_sample_is_enough() -> None:
    first = FirstSamples("pretrain", CPU)
    first.look_collective(batch(1, *["torn"] * 30), last=False)
    for _ in range(3):
        first.look_collective(batch(0, *["torn"] * 30), last=True)


@pytest.mark.usefixtures("one_rank")
def test_small_batches_are_added_up_and_the_last_one_decides() -> None:
    first = FirstSamples("pretrain", CPU)
    for _ in range(ENOUGH - 1):
        first.look_collective(batch(0, "torn"), last=False)
    with pytest.raises(DataError, match="first 8 samples"):
        first.look_collective(batch(0, "torn"), last=False)
    with pytest.raises(DataError, match="first 1 samples"):
        FirstSamples("pretrain", CPU).look_collective(batch(0, "torn"), last=True)
