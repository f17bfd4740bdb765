from __future__ import annotations

import math
from typing import Any

from pipeline.metrics.accuracy import CLASSIFICATION
from pipeline.metrics.outcome import choose_branch, measures_of, schema_of
from pipeline.metrics.schema import LOSS, Schema

BY_LOSS = Schema((LOSS,), "loss").to_dict()


def test_what_a_stage_has_written_is_read_by_its_own_schema() -> None:
    status = {"schema": BY_LOSS, "result": {"measures": {"loss": 0.5}, "samples": 9}}
    assert schema_of(status) == Schema((LOSS,), "loss")
    assert measures_of(status) == {"loss": 0.5}


def test_statuses_of_old_are_classification_s() -> None:
    status = {"result": {"accuracy": 0.5, "loss": 2.0, "start_accuracy": None, "steps": 9}}
    assert schema_of(status) is CLASSIFICATION
    assert measures_of(status) == {"loss": 2.0, "accuracy": 0.5}
    assert measures_of({"result": {"accuracy": None, "loss": None}}) == {}


def test_a_stage_that_was_not_validated_has_no_measures() -> None:
    assert measures_of({"schema": BY_LOSS, "result": {"measures": {}, "loss": 3.0}}) == {}
    assert measures_of({"schema": BY_LOSS, "state": "running"}) == {}


def test_branches_are_compared_by_the_measure_that_selects() -> None:
    losses = {"a": 0.5, "b": math.nan}
    statuses: dict[str, Any] = {
        key: {"schema": BY_LOSS, "result": {"measures": {"loss": loss}}} for key, loss in losses.items()
    }
    assert choose_branch({**statuses, "c": {}}) == (LOSS, {"a": 0.5, "b": None, "c": None}, None)
    assert choose_branch({"b": statuses["b"]}).best == "b"
    statuses["b"]["result"]["measures"]["loss"] = 0.25
    assert choose_branch(statuses) == (LOSS, {"a": 0.5, "b": 0.25}, "b")
