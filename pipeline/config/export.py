"""How an export stage writes models."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from pipeline.config.section import Section
from pipeline.errors import ConfigError

STEP, SOUP = re.compile(r"step-(\d+)"), re.compile(r"soup-(\d+)")
LAST, EMA, BEST = "last", "ema", "best"


def check_weights(text: str) -> str:
    """Return a `--weights` argument unchanged. Raises `ConfigError` if it is invalid."""
    try:
        return _weights(text)
    except ValueError as error:
        raise ConfigError(f"--weights: found {text!r}, expected {error}") from None


def _weights(text: str) -> str:
    soup = SOUP.fullmatch(text)
    if text not in (LAST, EMA, BEST) and not STEP.fullmatch(text) and not (soup and int(soup[1]) > 1):
        raise ValueError(
            "last, ema, best, step-N (a checkpoint), or soup-K (the mean of the last K checkpoints, at least two)"
        )
    return text


# Which weights of a training stage to take: from its last checkpoint, as optimised or as their moving average; from the
# best checkpoint or a given step, averaged if an average is kept; or the mean over the last K checkpoints.
Weights = Annotated[str, AfterValidator(_weights)]


class RegisterConfig(Section):
    """A version in MLflow's model registry."""

    name: Annotated[str, Field(min_length=1, pattern=r"^[^/:'\"]+$")] = Field(
        description="name of the registered model"
    )
    alias: Annotated[str, Field(min_length=1)] = Field(
        default="champion",
        description="moved to a new version if it is better by the measure that the task selects by",
    )


class GraphConfig(Section):
    """Settings of formats that hold a graph of operators."""

    opset: Annotated[int, Field(ge=18, le=23)] = Field(
        default=18, description="version of ONNX's operators; runtimes support their own version and older ones"
    )
    any_size: bool = Field(
        default=True, description="accept images of any size that is a multiple of the patch, if the model does"
    )
