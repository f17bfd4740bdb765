"""A stage's `task` section: its `type` names a package in `pipeline.tasks`, whose `Task` defines the settings."""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import PlainValidator, SerializeAsAny, ValidationInfo

from pipeline.config.fields import allowed, show
from pipeline.config.section import Section, SectionType
from pipeline.config.text import TokenizerConfig
from pipeline.config.views import IMAGE, ViewGroup
from pipeline.metrics.schema import Schema

PACKAGE = "pipeline.tasks"  # a higher layer, so its types are imported by name when a pipeline file asks for them
TARGETS = "pipeline.targets"  # likewise
DEFAULT = "classification"


class TaskConfig(Section):
    """What a stage trains its model to do; see `pipeline.tasks.task.BaseTask` for what else a task declares."""

    type: str = DEFAULT

    measured: ClassVar[Schema]  # what training, validation and evaluation measure
    measuring: ClassVar[frozenset[str]] = frozenset()  # settings that affect only how models are measured and predict
    evaluates: ClassVar[frozenset[str]] = frozenset()  # further task types whose models can be evaluated as this one
    coupled: ClassVar[bool] = False  # whether its loss compares samples, so that a single one has none
    pipeline_tag: ClassVar[str] = "image-feature-extraction"  # the Hub's name for what its models do
    names_classes: ClassVar[bool] = False  # whether models can be evaluated on any classes of the data
    targets: ClassVar[tuple[str, ...]] = ()  # kinds of labels that the data must have; if empty, images suffice
    judged_alone: ClassVar[bool] = True  # whether an evaluation works without models used only in training

    def view_groups(self, *, evaluation: bool = False) -> Mapping[str, ViewGroup]:
        """The groups of views of each sample; labels in image coordinates follow the first view of the first group.

        An `evaluation` sees one view of the first group.
        """
        return IMAGE

    @property
    def measuring_settings(self) -> dict[str, Any]:
        """Settings in `measuring` that differ from their defaults, as plain data, stored with the finished model."""
        return self.model_dump(mode="json", include=set(self.measuring), exclude_defaults=True)

    @property
    def taught_by(self) -> str | None:
        """The finished model that it learns from: the setting `teacher`, a reference like `init_from`."""
        return None

    @property
    def shards_teacher(self) -> bool:
        """Whether the teacher's weights are sharded across ranks."""
        return False

    def lacks(self) -> str | None:
        """What a stage is missing for training, as `field: sentence`; a finished model does not need it."""
        return None

    def tokenizing(self) -> TokenizerConfig | None:
        """How texts become tokens; None if the task reads no texts."""
        return None

    def unmixable(self) -> str | None:
        """Why mixup and CutMix are unavailable; None if they are available."""
        kinds = importlib.import_module(TARGETS)
        if sum(group.count for group in self.view_groups().values()) > 1:
            return f"the task {self.type} sees several views of each sample, which cannot be mixed"
        fixed = [kind for kind in self.targets if not kinds.target_kind(kind).mixes]
        return f"the {fixed[0]} that the task {self.type} learns from cannot be mixed" if fixed else None

    @classmethod
    def chosen_by(cls, raw: Any) -> SectionType:
        """The section of the type that `raw` names; this one if the type does not exist."""
        try:
            return task_class(named_type(raw))
        except ValueError:
            return cls


def task_types() -> list[str]:
    """All task types, sorted by name."""
    modules = pkgutil.iter_modules(importlib.import_module(PACKAGE).__path__)
    return sorted(name for _, name, is_package in modules if is_package)


def task_class(name: Any) -> type[TaskConfig]:
    """The section of a task type. Raises ValueError, as validators do, for an unknown type."""
    if name not in (types := task_types()):
        raise ValueError(f"type: found {show(name)}, {allowed(str(name), types)}")
    chosen: type[TaskConfig] = importlib.import_module(f"{PACKAGE}.{name}").Task
    return chosen


def named_type(raw: Any) -> Any:
    return raw.get("type", DEFAULT) if isinstance(raw, Mapping) else DEFAULT


def default_task() -> TaskConfig:
    return task_class(DEFAULT)()


def read_task(raw: Any, info: ValidationInfo) -> TaskConfig:
    """The task that a section describes, validated as strictly as the enclosing section."""
    if isinstance(raw, TaskConfig):
        return raw
    if not isinstance(raw, Mapping):
        raise ValueError("a section with a type")
    chosen = task_class(named_type(raw))
    if info.mode == "json":
        return chosen.model_validate_json(json.dumps(raw), strict=True)
    return chosen.model_validate(raw)


AnyTask = Annotated[SerializeAsAny[TaskConfig], PlainValidator(read_task)]
