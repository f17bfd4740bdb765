"""Shared declarations of tasks that compare the embeddings of several views; needs no torch."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from pipeline.config.data import Area
from pipeline.config.section import Positive, Section
from pipeline.config.views import ViewGroup
from pipeline.models.spec import HeadSpec, ViTSpec, as_pair
from pipeline.tasks.task import BaseTask

HEAD, GLOBAL, LOCAL = "projector", "global", "local"
SCALES = {GLOBAL: (0.4, 1.0), LOCAL: (0.05, 0.4)}  # as in DINO (Caron et al. 2021)


class ViewsConfig(Section):
    """A group of views: crops of one size from the same distribution."""

    count: Positive = Field(default=2, description="views of each sample")
    size: Positive | tuple[Positive, Positive] | None = Field(
        default=None, description="pixels, one number or [height, width]; default: that of the step's images"
    )
    scale: tuple[Area, Area] | None = Field(
        default=None,
        description="least and largest share of the image's area; default: [0.4, 1.0] for global views, [0.05, 0.4] "
        "for local ones",
    )

    @field_validator("scale")
    @classmethod
    def ordered(cls, limits: tuple[float, float] | None) -> tuple[float, float] | None:
        if limits is not None and limits[0] > limits[1]:
            raise ValueError("a list of 2, the smaller first")
        return limits

    def group(self, scale: tuple[float, float]) -> ViewGroup:
        """The view group; `scale` is the default scale."""
        return ViewGroup(self.count, None if self.size is None else as_pair(self.size), self.scale or scale)


class ProjectorConfig(Section):
    """The MLP on top of the encoder, which fine-tuning drops."""

    dim: Positive = Field(default=64, description="width of the embeddings that are compared")
    hidden: Positive | None = Field(default=None, description="width of its hidden layers; default: 4 x the encoder's")
    layers: Positive = 3


class JointTask(BaseTask):
    """Global views cover much of an image; local ones cover little of it and need fewer tokens (Caron et al. 2020)."""

    coupled: ClassVar[bool] = True

    views: dict[Literal["global", "local"], ViewsConfig] = Field(
        default={"global": ViewsConfig()}, description="groups of views: global and, optionally, local"
    )
    projector: ProjectorConfig = ProjectorConfig()

    @field_validator("views")
    @classmethod
    def can_agree(cls, views: dict[str, ViewsConfig]) -> dict[str, ViewsConfig]:
        if GLOBAL not in views or sum(group.count for group in views.values()) < 2:
            raise ValueError("the group global and optionally local, with at least two views in total")
        return views

    def view_groups(self, *, evaluation: bool = False) -> dict[str, ViewGroup]:
        """Evaluation sees each image whole, at the model's size."""
        if evaluation:
            return {GLOBAL: ViewGroup()}
        return {name: self.views[name].group(scale) for name, scale in SCALES.items() if name in self.views}

    def heads(self, backbone: ViTSpec, num_classes: int) -> dict[str, HeadSpec]:
        return {HEAD: HeadSpec("projection", self.projector.dim, self.head_options())}

    def head_options(self) -> dict[str, Any]:
        hidden = {} if self.projector.hidden is None else {"hidden": self.projector.hidden}
        return {**hidden, "layers": self.projector.layers}
