"""A stage's section: its `type` names a module in `pipeline.stages.types`, which defines the settings."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field, PlainValidator, SerializeAsAny, ValidationInfo

from pipeline.config.cluster import ResourcesConfig
from pipeline.config.fields import allowed, show
from pipeline.config.section import Section, SectionType

PACKAGE = "pipeline.stages.types"  # a higher layer, so they are imported by name when a file asks for them
TYPES = {  # type -> module
    "pretrain": "train",
    "finetune": "train",
    "evaluate": "evaluate",
    "probe": "probe",
    "export": "export",
    "report": "report",
}


class StageConfig(Section):
    """One stage; see `pipeline.stages.stage_type.StageType` for what else a type of stage declares."""

    resources: ResourcesConfig | None = Field(default=None, description="default: the pipeline's `cluster`")
    type: str

    on_workers: ClassVar[bool] = True  # whether ranks do its work
    reads_run: ClassVar[bool] = False  # whether it reads the whole run, and so waits for all other stages

    @property
    def models_read(self) -> dict[str, str]:
        """Setting -> the model that it names: a stage, STAGE/VARIANT, a path or foreign weights."""
        return {}

    @property
    def data_read(self) -> dict[str, str]:
        """Setting -> the entry of `datasets` that it names."""
        return {}

    def details(self, models: int) -> list[str]:
        """What it works with, in at most two lines, for the report's graph; `models` are those that it reads."""
        return []

    def awaits(self, stages: Mapping[str, StageConfig]) -> list[str]:
        """The names of stages, besides those whose models it reads, that must finish first."""
        return []

    def faults(self, name: str, stages: Mapping[str, StageConfig], cluster: ResourcesConfig) -> Iterator[str]:
        """One sentence per setting that other sections rule out; `name` is the stage's own."""
        yield from ()

    @classmethod
    def chosen_by(cls, raw: Any) -> SectionType:
        """The section of the type that `raw` names; this one if the type does not exist."""
        try:
            return stage_class(raw)
        except ValueError:
            return cls


def type_module(name: str) -> Any:
    """The module that declares a type of stage."""
    return importlib.import_module(f"{PACKAGE}.{TYPES[name]}")


def stage_class(raw: Any) -> type[StageConfig]:
    """The section of the type that `raw` names. Raises ValueError, as validators do, if there is none."""
    if not isinstance(raw, Mapping):
        raise ValueError("a section with a type")
    if (name := raw.get("type")) is None:
        raise ValueError(f"type: missing; set it to one of {', '.join(TYPES)}")
    if name not in list(TYPES):
        raise ValueError(f"type: found {show(name)}, {allowed(str(name), TYPES)}")
    chosen: type[StageConfig] = type_module(name).TYPE.section
    return chosen


def read_stage(raw: Any, info: ValidationInfo) -> StageConfig:
    """The stage that a section describes, validated as strictly as the enclosing section."""
    if isinstance(raw, StageConfig):
        return raw
    chosen = stage_class(raw)
    if info.mode == "json":
        return chosen.model_validate_json(json.dumps(raw), strict=True)
    return chosen.model_validate(raw)


AnyStage = Annotated[SerializeAsAny[StageConfig], PlainValidator(read_stage)]
