"""What a task measures: names, titles, which direction is better, and which measure selects between models."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

Key = TypeVar("Key", bound=Hashable)
Better = Literal["higher", "lower"]


VAL = "val/"  # prefix under which a training stage logs validation measures


class Measure(NamedTuple):
    """A measure: its name in files and settings, its title for people. A `share`, from 0 to 1, is shown in percent."""

    name: str
    title: str
    better: Better
    share: bool = False

    @property
    def words(self) -> str:
        """The title as used within a sentence: mean IoU, but AP."""
        first, *others = self.title.split(" ")
        return " ".join([first.lower() if first.istitle() else first, *others])

    def text(self, value: float, digits: int = 1) -> str:
        """81.3 % for a share, otherwise four significant digits."""
        return f"{100 * value:.{digits}f} %" if self.share else f"{value:.4g}"


LOSS = Measure("loss", "Loss", "lower")


@dataclass(frozen=True)
class Schema:
    """The measures of a task, in display order.

    `selects` names the one that selects between models.
    """

    measures: tuple[Measure, ...]
    selects: str

    def __post_init__(self) -> None:
        assert self.selects in self.names, f"{self.selects} is none of {self.names}"

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(measure.name for measure in self.measures)

    @property
    def selected(self) -> Measure:
        """The measure that selects between models."""
        return self[self.selects]

    @property
    def ranked(self) -> tuple[Measure, ...]:
        """The measures, with the selecting one first."""
        return (self.selected, *(measure for measure in self.measures if measure.name != self.selects))

    def __getitem__(self, name: str) -> Measure:
        """The measure of that name. Raises KeyError if there is none."""
        return {measure.name: measure for measure in self.measures}[name]

    def plus(self, *measures: Measure) -> Schema:
        """This schema with `measures` appended and the same selecting measure."""
        return Schema((*self.measures, *measures), self.selects)

    def better(self, metric: str) -> Better:
        """Which direction of a metric such as `val/loss` is better. Raises KeyError if it is not among the measures."""
        return self[metric.removeprefix(VAL)].better

    def of(self, found: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
        """The values in a row, such as `val/loss`, that belong to these measures, by name and in their order."""
        return {name: found[prefix + name] for name in self.names if prefix + name in found}

    def to_dict(self) -> dict[str, Any]:
        return {"measures": [measure._asdict() for measure in self.measures], "selects": self.selects}

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Schema:
        return cls(tuple(Measure(**measure) for measure in found["measures"]), found["selects"])


def best(values: Mapping[Key, float | None], better: Better) -> Key | None:
    """The key of the best value, the first on ties; None if no value is finite."""
    sign = 1 if better == "higher" else -1
    finite = {key: sign * value for key, value in values.items() if value is not None and math.isfinite(value)}
    return max(finite, key=finite.__getitem__, default=None)
