"""A stage's `task` section: its `type` names a package of `pipeline.tasks`, whose `Task` has the settings."""

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

PACKAGE = "pipeline.tasks"  # above this one, so its types are imported by name when a pipeline file asks for them
TARGETS = "pipeline.targets"  # so is this
DEFAULT = "classification"


class TaskConfig(Section):
    """What a stage trains its model to do; see `pipeline.tasks.task.BaseTask` for what else a task declares."""

    type: str = DEFAULT

    measured: ClassVar[Schema]  # what training, validation and evaluation measure
    measuring: ClassVar[frozenset[str]] = frozenset()  # settings that only decide how models are measured, and predict
    evaluates: ClassVar[frozenset[str]] = frozenset()  # types of models, besides its own, that can be judged as this
    coupled: ClassVar[bool] = False  # whether its loss compares samples with each other, so that one alone has none
    pipeline_tag: ClassVar[str] = "image-feature-extraction"  # the Hub's word for what its models do
    names_classes: ClassVar[bool] = False  # whether models are asked about whatever classes the data have
    targets: ClassVar[tuple[str, ...]] = ()  # kinds of labels that the data must have; without any, images are enough
    judged_alone: ClassVar[bool] = True  # whether an evaluation can do without what a model was trained beside

    def view_groups(self, *, evaluation: bool = False) -> Mapping[str, ViewGroup]:
        """The groups of views of each sample; labels that lie in the picture follow the first view of the first.

        An `evaluation` sees one view of the first group.
        """
        return IMAGE

    @property
    def measuring_settings(self) -> dict[str, Any]:
        """Those of `measuring` that are not at their defaults, as plain data; they go with the finished model."""
        return self.model_dump(mode="json", include=set(self.measuring), exclude_defaults=True)

    @property
    def taught_by(self) -> str | None:
        """The finished model that it learns from, named by the setting `teacher` as `init_from` names one."""
        return None

    @property
    def shards_teacher(self) -> bool:
        """Whether each rank keeps only a share of that model's weights."""
        return False

    def lacks(self) -> str | None:
        """What a stage cannot train without, as `field: sentence`; a finished model can do without it."""
        return None

    def tokenizing(self) -> TokenizerConfig | None:
        """How texts become tokens; None where the task reads none."""
        return None

    def unmixable(self) -> str | None:
        """Why mixup and CutMix cannot be asked for; None where they can."""
        kinds = importlib.import_module(TARGETS)
        if sum(group.count for group in self.view_groups().values()) > 1:
            return f"the task {self.type} sees several views of each sample, which cannot be mixed"
        fixed = [kind for kind in self.targets if not kinds.target_kind(kind).mixes]
        return f"the {fixed[0]} that the task {self.type} learns from cannot be mixed" if fixed else None

    @classmethod
    def chosen_by(cls, raw: Any) -> SectionType:
        """The section of the type that `raw` names; this one where it names none that there is."""
        try:
            return task_class(named_type(raw))
        except ValueError:
            return cls


def task_types() -> list[str]:
    """All types, in the order of their names."""
    modules = pkgutil.iter_modules(importlib.import_module(PACKAGE).__path__)
    return sorted(name for _, name, is_package in modules if is_package)


def task_class(name: Any) -> type[TaskConfig]:
    """The section of a type. Raises ValueError, as validators do, for a type that there is not."""
    if name not in (types := task_types()):
        raise ValueError(f"type: found {show(name)}, {allowed(str(name), types)}")
    chosen: type[TaskConfig] = importlib.import_module(f"{PACKAGE}.{name}").Task
    return chosen


def named_type(raw: Any) -> Any:
    return raw.get("type", DEFAULT) if isinstance(raw, Mapping) else DEFAULT


def default_task() -> TaskConfig:
    return task_class(DEFAULT)()


def read_task(raw: Any, info: ValidationInfo) -> TaskConfig:
    """The task that a section describes, as strict as what it stands in."""
    if isinstance(raw, TaskConfig):
        return raw
    if not isinstance(raw, Mapping):
        raise ValueError("a section with a type")
    chosen = task_class(named_type(raw))
    if info.mode == "json":
        return chosen.model_validate_json(json.dumps(raw), strict=True)
    return chosen.model_validate(raw)


AnyTask = Annotated[SerializeAsAny[TaskConfig], PlainValidator(read_task)]
