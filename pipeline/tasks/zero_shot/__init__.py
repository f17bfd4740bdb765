"""Zero-shot classification: an image-text model evaluated as a classifier whose classes are given as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from pipeline.config.fields import allowed
from pipeline.errors import ModelError
from pipeline.metrics.accuracy import CLASSIFICATION
from pipeline.metrics.schema import Schema
from pipeline.models.spec import HeadSpec, ViTSpec
from pipeline.tasks.task import BaseTask

if TYPE_CHECKING:
    from pipeline.models.bundle import Preprocess
    from pipeline.models.minivit import MiniViT
    from pipeline.tasks.base import TaskModule


class Task(BaseTask):
    """Represents each class by the mean embedding of its prompts (Radford et al. 2021); trains nothing."""

    type: Literal["zero_shot"] = "zero_shot"
    templates: Annotated[list[str], Field(min_length=1)] = Field(
        default=["a {}", "a photo of a {}"], description="prompts, with {} in place of the class name"
    )
    names: dict[str, str] = Field(
        default_factory=dict, description="names of classes in prompts, where they differ from their own"
    )

    measured: ClassVar[Schema] = CLASSIFICATION
    targets: ClassVar[tuple[str, ...]] = ("class_id",)
    evaluates: ClassVar[frozenset[str]] = frozenset({"clip"})
    names_classes: ClassVar[bool] = True

    @field_validator("templates")
    @classmethod
    def hold_a_name(cls, templates: list[str]) -> list[str]:
        for template in templates:
            if template.count("{}") != 1:
                raise ValueError(f"found {template!r}; write {{}} once, where the class name belongs")
        return templates

    def check_classes(self, classes: Sequence[str]) -> None:
        if unknown := next((name for name in self.names if name not in classes), None):
            raise ModelError(
                f"names: {unknown!r} is not among the {len(classes)} classes of the data; "
                f"{allowed(unknown, classes[:100])}"
            )

    def lacks(self) -> str:
        return "type: found zero_shot, which cannot be trained; train with clip, and evaluate that as zero_shot"

    def heads(self, backbone: ViTSpec, num_classes: int) -> dict[str, HeadSpec]:
        raise ModelError(f"task.{self.lacks()}")

    def module(self, model: MiniViT, classes: Sequence[str], preprocess: Preprocess) -> TaskModule:
        from pipeline.tasks.zero_shot.module import ZeroShot

        return ZeroShot(model, preprocess, classes, self)
