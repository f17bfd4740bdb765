"""The `cluster` section, and what one stage asks of the cluster."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from pipeline.config.section import Positive, Section

VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class ElasticWorkers(Section):
    """As many workers as fit, within bounds: fewer when a node is lost, more when one joins."""

    min: Positive = 1
    max: Positive

    @model_validator(mode="after")
    def in_order(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min: {self.min} is above max = {self.max}; set it to at most that")
        return self


class ResourcesConfig(Section):
    """The resources that a stage requests; each worker is one rank."""

    workers: Positive | ElasticWorkers | Literal["auto"] = Field(
        default="auto",
        description="a number, or {min: 1, max: 8}: as many as fit; auto: one per GPU of the cluster, else per CPU",
    )
    cpus_per_worker: Positive | Literal["auto"] = Field(
        default="auto",
        description="auto: a node's CPUs divided among its GPUs; without GPUs 1, or an eighth of a node's CPUs with "
        "workers: auto",
    )
    gpus_per_worker: Annotated[int, Field(ge=0, le=1)] | Literal["auto"] = Field(
        default="auto", description="auto: 1 if the cluster has any"
    )

    @property
    def most_workers(self) -> int | None:
        """The most workers asked for; None for as many as the cluster has."""
        if self.workers == "auto":
            return None
        return self.workers.max if isinstance(self.workers, ElasticWorkers) else self.workers


class ClusterConfig(ResourcesConfig):
    address: str | None = Field(
        default=None, description="Ray address; default: the cluster at RAY_ADDRESS, else this machine"
    )
    env: list[str] = Field(
        default_factory=list,
        description="names of environment variables that ranks inherit from `run`, in addition to those of networks, "
        "stores and libraries, which they always inherit",
    )
    max_restarts: Annotated[int, Field(ge=0)] = Field(
        default=3, description="restarts after lost workers, in a row and without a new checkpoint in between"
    )
    wait_s: Annotated[float, Field(gt=0)] = Field(
        default=600.0, description="how long a stage waits for its minimum number of workers after losing nodes"
    )
    stall_timeout_s: Annotated[float, Field(gt=0)] = Field(
        default=600.0,
        description="if no rank makes progress for this long, all ranks dump their stacks to their logs and restart",
    )

    @field_validator("env")
    @classmethod
    def names_variables(cls, names: list[str]) -> list[str]:
        if not all(map(VARIABLE_NAME.fullmatch, names)):
            raise ValueError("names of environment variables; their values stay out of the config")
        return names
