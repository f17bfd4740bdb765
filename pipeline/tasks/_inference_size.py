"""The input size of finished models, for tasks whose labels are at the images' own size."""

from __future__ import annotations

from pydantic import Field

from pipeline.config.section import Positive, Section
from pipeline.config.views import ViewGroup
from pipeline.errors import ModelError
from pipeline.models.spec import ViTSpec, as_pair, whole_patches


class InferenceSize(Section):
    """Base of a task's `inference` section: the size of images in validation, evaluation and prediction."""

    size: Positive | tuple[Positive, Positive] | None = Field(
        default=None, description="pixels, one number or [height, width]; default: the model's"
    )

    def check(self, backbone: ViTSpec) -> None:
        """Raise `ModelError` for settings that do not fit the backbone, such as a size it cannot process."""
        if self.size is not None:
            try:
                whole_patches(as_pair(self.size), backbone.patch)
            except ModelError as error:
                raise ModelError(f"task.inference.size: {str(error).partition(': ')[2]}") from None

    def view_groups(self, *, evaluation: bool) -> dict[str, ViewGroup]:
        """One view of each sample, of this size in an evaluation."""
        size = self.size if evaluation else None
        return {"image": ViewGroup(size=None if size is None else as_pair(size))}
