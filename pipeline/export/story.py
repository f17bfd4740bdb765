"""The known history of a model: plain data for its card."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from pipeline.metrics.schema import Measure


class DataUse(NamedTuple):
    """A data set that a stage read, by the digest of its index."""

    stage: str
    role: str  # train, val or test
    name: str
    digest: str


class Figure(NamedTuple):
    """A measure of the model on `samples` samples of a data set; `interval` is its 95 % interval, if any, and how."""

    measure: Measure
    value: float
    data: str
    digest: str
    samples: int | None
    interval: tuple[float, float] | None
    method: Literal["Wilson", "bootstrap", ""] = ""


class Step(NamedTuple):
    """A training stage in the model's history; `surgery` says how the weights were adapted to its shape."""

    stage: str
    type: str
    source: str | None
    teacher: str | None
    samples: int | None
    surgery: str | None
    settings: dict[str, Any]


@dataclass(frozen=True)
class Story:
    """The history of a model. The first step is the oldest known one."""

    name: str | None = None
    steps: tuple[Step, ...] = ()
    data: tuple[DataUse, ...] = ()
    figures: tuple[Figure, ...] = ()
    license: str | None = None
    known: dict[str, Any] = field(default_factory=dict)  # whatever else the model records about itself
