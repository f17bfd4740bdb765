from __future__ import annotations

import math

import pytest

from pipeline.metrics.accuracy import CLASSIFICATION
from pipeline.metrics.schema import LOSS, Measure, Schema, best

IOU = Measure("miou", "Mean IoU", "higher", share=True)


def test_a_schema_survives_json() -> None:
    schema = Schema((LOSS, IOU), selects="miou")
    assert Schema.from_dict(schema.to_dict()) == schema
    assert schema.selected is IOU
    assert schema.names == ("loss", "miou")


def test_a_schema_selects_by_one_of_its_measures() -> None:
    with pytest.raises(AssertionError, match="accuracy is none of"):
        Schema((LOSS,), selects="accuracy")


def test_measures_are_picked_from_a_row_in_their_order() -> None:
    row = {"val/top5": 0.9, "step": 3, "val/loss": 1.5, "train/loss": 2.0}
    assert list(CLASSIFICATION.of(row, "val/").items()) == [("loss", 1.5), ("top5", 0.9)]
    assert Schema((LOSS, IOU), "loss").of(row) == {}


def test_a_measure_writes_itself() -> None:
    assert (IOU.text(0.8125), LOSS.text(1.23456)) == ("81.2 %", "1.235")


@pytest.mark.parametrize(
    ("values", "better", "expected"),
    [
        ({"a": 0.5, "b": 0.7, "c": 0.7}, "higher", "b"),
        ({"a": 0.5, "b": 0.3, "c": 0.3}, "lower", "b"),
        ({"a": None, "b": math.nan, "c": -math.inf, "d": 9.0}, "lower", "d"),
        ({"a": None, "b": math.nan}, "higher", None),
        ({}, "higher", None),
    ],
)
def test_the_best_is_finite_and_the_first_of_equals(
    values: dict[str, float | None], better: str, expected: str
) -> None:
    assert best(values, better) == expected
