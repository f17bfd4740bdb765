"""Building blocks of the schema: the sections' base class, and a typed length of training."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_serializer, model_validator

DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kKMB]?)\s*(epochs?|steps?|samples?)\s*")
MULTIPLIER = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "B": 10**9}


Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(ge=0, lt=1)]  # a fraction below 1


class Section(BaseModel):
    """Base of all sections: immutable, without unknown keys, infinities or NaN.

    A validator's ValueError is a phrase: either `field: sentence` about one of its fields (or a dotted path), or what
    was expected. `pipeline.config.messages` puts the dotted path and the found value in front of it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    # Settings that are no inputs of a stage (`pipeline.stages.inputs`), with the reason.
    resolved: ClassVar[Mapping[str, str]] = {}  # those that stand for an input, and for which
    without_effect: ClassVar[Mapping[str, str]] = {}  # those that change how a stage runs, but not what it computes

    @classmethod
    def chosen_by(cls, raw: Any) -> SectionType:
        """The section that describes `raw`: this one, unless something in `raw` chooses among several."""
        return cls


SectionType: TypeAlias = type[Section]


class Duration(Section):
    """A typed length of training: `10 epochs`, `5000 steps`, `1.2M samples`."""

    value: Annotated[float, Field(ge=0)]
    unit: Literal["epochs", "steps", "samples"]

    @model_validator(mode="before")
    @classmethod
    def parse(cls, raw: Any) -> Any:
        if isinstance(raw, (Duration, dict)):
            return raw
        match = DURATION.fullmatch(raw) if isinstance(raw, str) else None
        if match is None:
            raise ValueError("a duration such as '10 epochs', '5000 steps' or '1.2M samples'")
        number, multiplier, unit = match.groups()
        # Decimal, because 1.1 * 10**6 in binary is slightly above 1.1 million, and lengths are rounded up.
        return {"value": float(Decimal(number) * MULTIPLIER[multiplier]), "unit": unit.rstrip("s") + "s"}

    def steps(self, samples_per_epoch: int, global_batch_size: int) -> int:
        """Number of optimiser steps, rounded up, that this length takes on a data set."""
        value = Fraction(Decimal(repr(self.value)))  # as written: 0.1 epochs of 1000 samples are exactly 100
        if self.unit == "steps":
            return math.ceil(value)
        samples = value * samples_per_epoch if self.unit == "epochs" else value
        return math.ceil(samples / global_batch_size)

    @model_serializer
    def __str__(self) -> str:
        number = int(self.value) if self.value.is_integer() else Decimal(repr(self.value))
        return f"{number:f} {self.unit}" if isinstance(number, Decimal) else f"{number} {self.unit}"


def _above_zero(duration: Duration) -> Duration:
    if duration.value == 0:
        raise ValueError("a length above 0")
    return duration


Length = Annotated[Duration, AfterValidator(_above_zero)]
