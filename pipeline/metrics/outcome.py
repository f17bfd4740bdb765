"""Reads the measures that stages recorded in `status.json` and `evaluation.json`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Generic, NamedTuple, TypeVar

from pipeline.metrics.accuracy import CLASSIFICATION
from pipeline.metrics.schema import Measure, Schema, best

Key = TypeVar("Key")


def schema_of(written: Mapping[str, Any]) -> Schema:
    """The schema in a status or an evaluation; classification's if it predates other tasks."""
    found = written.get("schema")
    return Schema.from_dict(found) if found else CLASSIFICATION


def measures_of(status: Mapping[str, Any]) -> dict[str, float]:
    """The measures of a training stage's last validation, by name; empty if it had no validation."""
    result = status.get("result") or {}
    found = result.get("measures", result)  # older statuses store them among the other results
    return {name: value for name, value in schema_of(status).of(found).items() if value is not None}


class Choice(NamedTuple, Generic[Key]):
    """The branch that a stage stands for; `best` is None if its branches cannot be compared."""

    measure: Measure  # that selects
    values: dict[Key, float | None]  # of each branch's last validation; None if not finite
    best: Key | None


def choose_branch(statuses: Mapping[Key, Mapping[str, Any]]) -> Choice[Key]:
    """The best of a stage's finished branches in validation, the first on ties; needs at least one branch.

    A single branch needs no comparison; of several, each must have a value.
    """
    measure = schema_of(next(iter(statuses.values()))).selected
    found = {key: measures_of(status).get(measure.name, math.nan) for key, status in statuses.items()}
    values = {key: value if math.isfinite(value) else None for key, value in found.items()}
    if len(values) == 1:
        return Choice(measure, values, next(iter(values)))
    return Choice(measure, values, None if None in values.values() else best(values, measure.better))
