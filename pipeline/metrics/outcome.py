"""Reads the measures that stages recorded in `status.json` and `evaluation.json`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeVar

from pipeline.metrics.accuracy import CLASSIFICATION
from pipeline.metrics.schema import Measure, Schema

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


def selected_values(statuses: Mapping[Key, Mapping[str, Any]]) -> tuple[Measure, dict[Key, float | None]]:
    """The measure that selects between a stage's branches, and its finite value for each; needs at least one branch."""
    measure = schema_of(next(iter(statuses.values()))).selected
    values = {key: measures_of(status).get(measure.name, math.nan) for key, status in statuses.items()}
    return measure, {key: value if math.isfinite(value) else None for key, value in values.items()}
