"""The schema of a pipeline file. Each section is strict: an unknown key or a wrong type is an error."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field, field_validator

from pipeline.config.cluster import ClusterConfig, ResourcesConfig
from pipeline.config.data import DatasetConfig
from pipeline.config.paths import PathText, UriText
from pipeline.config.section import Section
from pipeline.config.stage import AnyStage, StageConfig

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")

SLOTS = re.compile(r"\d+:\d+")

FOLDER_NAME = "letters, digits, '_', '-' and '.', the first a letter or digit"


class TrackingConfig(Section):
    uri: UriText | None = Field(
        default=None,
        description="MLflow tracking URI; default: MLFLOW_TRACKING_URI, else the SQLite store runs/mlflow.db",
    )
    experiment: Annotated[str, Field(min_length=1, max_length=500)] | None = Field(
        default=None, description="experiment in MLflow; default: MLFLOW_EXPERIMENT_NAME or _ID, else minivit"
    )
    system_metrics_every_s: Annotated[float, Field(gt=0)] | None = Field(
        default=10.0, description="how often each node's CPU, memory, disk, network and GPUs are sampled; null: never"
    )
    wait_s: Annotated[float, Field(ge=0)] = Field(
        default=60.0, description="how long a run that has finished waits for a store that no longer answers"
    )


class TrainConfig(Section):
    """What `run` does instead of training; given on the command line."""

    replay_slots: str | None = Field(
        default=None, description="A:B, the slots of one batch to run again with anomaly detection"
    )

    @field_validator("replay_slots")
    @classmethod
    def names_slots(cls, slots: str | None) -> str | None:
        if slots is not None and not SLOTS.fullmatch(slots):
            raise ValueError("the slots A:B of a batch, as in the error that stopped the run")
        return slots


class PipelineConfig(Section):
    """A whole pipeline file."""

    name: str
    seed: Annotated[int, Field(ge=0)] = 0
    runs_dir: PathText = "runs"
    tracking: TrackingConfig = TrackingConfig()
    cluster: ClusterConfig = ClusterConfig()
    train: TrainConfig = TrainConfig()
    datasets: dict[str, DatasetConfig]
    stages: dict[str, AnyStage] = Field(min_length=1)

    @field_validator("name")
    @classmethod
    def names_a_folder(cls, name: str) -> str:
        if not NAME.fullmatch(name):
            raise ValueError(FOLDER_NAME)
        return name

    @field_validator("stages")
    @classmethod
    def stages_name_folders(cls, stages: dict[str, StageConfig]) -> dict[str, StageConfig]:
        for name in stages:
            if not NAME.fullmatch(name):
                raise ValueError(f"{name}: this becomes a folder name; use {FOLDER_NAME}")
        return stages

    def resources(self, stage: StageConfig) -> ResourcesConfig:
        """The resources that a stage requests: its own section, otherwise the pipeline's."""
        return stage.resources or self.cluster
