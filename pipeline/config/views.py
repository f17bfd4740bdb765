"""The views of each sample that a task asks for."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.config.data import AugmentConfig


@dataclass(frozen=True)
class ViewGroup:
    """Views of one size, each augmented with its own random draws.

    `scale` is the range of the fraction of the image's area that random crops cover, whatever `augment.crop` says; None
    crops as `augment` does.
    """

    count: int = 1
    size: tuple[int, int] | None = None  # height, width; None: the step's size
    scale: tuple[float, float] | None = None

    def augment(self, config: AugmentConfig) -> AugmentConfig:
        """The augmentation that turns a data set's images into views of this group."""
        if self.scale is None:
            return config
        return config.model_copy(update={"crop": "random_resized", "scale": self.scale})


IMAGE = {"image": ViewGroup()}  # the default: each sample once
