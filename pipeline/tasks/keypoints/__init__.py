"""Keypoints of instances, each processed in its own view around its box (top-down)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from pipeline.config.fields import allowed
from pipeline.errors import ModelError
from pipeline.metrics.keypoints import KEYPOINTS, default_sigmas
from pipeline.metrics.schema import Schema
from pipeline.models.spec import HeadSpec, Pair, ViTSpec
from pipeline.tasks.task import BaseTask, PredictOptions

if TYPE_CHECKING:
    from pipeline.models.bundle import Preprocess
    from pipeline.models.minivit import MiniViT
    from pipeline.tasks.keypoints.module import KeypointDetection

HEAD = "keypoint_head"
FINER = 3  # times the model's size: resolution of whole images in prediction, from which instances are cropped
SIDE = re.compile(r"(?<![a-z])(left|right)(?![a-z])")

Positive = Annotated[float, Field(gt=0)]


class Task(BaseTask):
    """A Gaussian heat map for each keypoint, with squared error; PCK in the images' own pixels selects models."""

    targets: ClassVar[tuple[str, ...]] = ("keypoints",)
    pipeline_tag: ClassVar[str] = "keypoint-detection"
    predict_options: ClassVar[PredictOptions] = {"boxes": list}
    measuring: ClassVar[frozenset[str]] = frozenset({"sigmas", "flip_test"})
    measured: ClassVar[Schema] = KEYPOINTS

    type: Literal["keypoints"] = "keypoints"
    layers: Annotated[list[int], Field(min_length=1)] | None = Field(
        default=None, description="layers, from 0, whose maps the head reads; default: the last one"
    )
    sigma: Positive = Field(
        default=2.0, description="standard deviation of the heat maps' Gaussians, in quarters of a patch"
    )
    flip_pairs: list[tuple[str, str]] | None = Field(
        default=None,
        description="pairs of keypoints that flips swap; default: names that differ only in left and right",
    )
    sigmas: list[Positive] | None = Field(
        default=None,
        description="OKS tolerance of each keypoint; default: COCO's for 17, else 1 / number for each",
    )
    flip_test: bool = Field(default=False, description="average the heat maps of a view and its mirror image")

    @property
    def measuring_settings(self) -> dict[str, Any]:
        """Also includes the pairs, which the flip test needs."""
        pairs = {} if self.flip_pairs is None else {"flip_pairs": [list(pair) for pair in self.flip_pairs]}
        return {**super().measuring_settings, **pairs}

    def heads(self, backbone: ViTSpec, num_classes: int) -> dict[str, HeadSpec]:
        return {HEAD: HeadSpec("heat_maps", num_classes, {} if self.layers is None else {"layers": self.layers})}

    def predict_size(self, image_size: Pair) -> Pair:
        """Larger than the model's size, as instances are small parts of an image."""
        return FINER * image_size[0], FINER * image_size[1]

    def check_classes(self, classes: Sequence[str]) -> None:
        self.mirror(classes)
        self.sigmas_of(classes)

    def mirror(self, names: Sequence[str]) -> list[int]:
        """The index of each keypoint's mirror partner. Raises ModelError for unknown names or overlapping pairs."""
        places, order = {name: place for place, name in enumerate(names)}, list(range(len(names)))
        for pair in self.flip_pairs if self.flip_pairs is not None else sides_of(names):
            for name in pair:
                if name not in places:
                    raise ModelError(f"flip_pairs: {name!r} is not a keypoint; {allowed(name, names)}")
            one, other = (places[name] for name in pair)
            if one == other or order[one] != one or order[other] != other:
                raise ModelError(f"flip_pairs: {list(pair)} repeats a keypoint; name each keypoint at most once")
            order[one], order[other] = other, one
        return order

    def sigmas_of(self, names: Sequence[str]) -> tuple[float, ...]:
        """The OKS sigma of each keypoint. Raises ModelError if the number of sigmas is wrong."""
        if self.sigmas is not None and len(self.sigmas) != len(names):
            raise ModelError(
                f"sigmas: found {len(self.sigmas)} for {len(names)} keypoints; give one for each, in their order"
            )
        return default_sigmas(len(names)) if self.sigmas is None else tuple(self.sigmas)

    def example_prediction(self, num_classes: int) -> dict[str, list[Any]]:
        return {"boxes": [[0.0, 0.0, 1.0, 1.0]], "keypoints": [[[0.0, 0.0, 0.5]]], "names": ["name"]}

    def module(self, model: MiniViT, classes: Sequence[str], preprocess: Preprocess) -> KeypointDetection:
        from pipeline.tasks.keypoints.module import KeypointDetection

        return KeypointDetection(model, self, classes, preprocess)


def sides_of(names: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of names that differ only in the words left and right."""
    others = {name: SIDE.sub(lambda found: "right" if found[0] == "left" else "left", name) for name in names}
    return [(name, other) for name, other in others.items() if name < other and other in others]
