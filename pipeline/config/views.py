"""The views of each sample that a task asks for."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.config.data import AugmentConfig


@dataclass(frozen=True)
class ViewGroup:
    """Views of one size, each augmented by draws of its own.

    `scale` is the range of the shares of the image's area that its crops show, drawn at random whatever `augment.crop`
    says; None: as `augment` crops.
    """

    count: int = 1
    size: tuple[int, int] | None = None  # height, width; None: that of the step
    scale: tuple[float, float] | None = None

    def augment(self, config: AugmentConfig) -> AugmentConfig:
        """How a data set's images become views of this group."""
        if self.scale is None:
            return config
        return config.model_copy(update={"crop": "random_resized", "scale": self.scale})


IMAGE = {"image": ViewGroup()}  # what most tasks see: each sample once
