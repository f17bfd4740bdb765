"""Depth per pixel: a 16-bit greyscale PNG of the image's size; 0 marks unmeasured pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self

import numpy as np
from pydantic import Field as Setting

from pipeline.config.targets import TargetConfig
from pipeline.errors import DataError
from pipeline.images.decode import BadImage, Pixels
from pipeline.images.depth_map import UNMEASURED, ShallowDepth, decode_depth, depth_colors, read_depth_size
from pipeline.images.geometry import Geometry, Size
from pipeline.targets.base import BadLabel, ClassMap, Field, Target
from pipeline.targets.mask import check_size

MILLIMETRE = 0.001


class DepthConfig(TargetConfig):
    scale: Annotated[float, Setting(gt=0)] = Setting(
        default=MILLIMETRE, description="metres per step of the PNG's values; default: a millimetre"
    )


@dataclass(frozen=True)
class Depth(Target):
    """A value is float32 [height, width] in metres, 0 for unmeasured pixels."""

    kind: ClassVar[str] = "depth"
    default_members: ClassVar[tuple[str, ...]] = ("depth.png",)
    moves: ClassVar[bool] = True
    covers: ClassVar[bool] = True
    classed: ClassVar[bool] = False
    config: ClassVar[type[TargetConfig]] = DepthConfig

    scale: float = MILLIMETRE

    @classmethod
    def build(cls, members: tuple[str, ...], config: TargetConfig, classes: ClassMap | None) -> Self:
        assert isinstance(config, DepthConfig)
        return cls(members, config.scale)

    def inputs(self) -> dict[str, Any]:
        return {"member": self.members[0], "scale": self.scale}

    def fields(self, size: Size, *, evaluation: bool) -> Mapping[str, Field]:
        """In training `depth`, transformed to the view; in evaluation `depth_full`, at its own size. In metres."""
        if evaluation:
            return {"depth_full": Field("float32", (None,)), "depth_full_size": Field("int32", (2,))}
        return {"depth": Field("float32", size, fill=UNMEASURED)}

    def decode(self, members: Mapping[str, Any], image: Size | None) -> np.ndarray:
        """Raises DataError for 8-bit or colour PNGs, as these affect a whole data set rather than a single sample."""
        data = self.member(members, "depth")
        try:
            if image is not None:
                check_size(read_depth_size(data), image, "depth map")
            steps = decode_depth(data)
        except ShallowDepth as shallow:
            raise DataError(f"has {shallow}") from None
        except BadImage as bad:
            raise BadLabel(str(bad)) from None
        if not steps.any():
            raise BadLabel("the depth map is 0 everywhere: nothing was measured")
        return steps * np.float32(self.scale)

    def transform(self, value: np.ndarray, geometry: Geometry) -> np.ndarray:
        """Warp the map; metric depth does not change with the scale of a crop."""
        return geometry.warp_mask(value, UNMEASURED)

    def pack(self, value: np.ndarray, fields: Mapping[str, Any], row: int) -> None:
        if "depth" in fields:
            fields["depth"][row] = value
        else:
            fields["depth_full"][row], fields["depth_full_size"][row] = value.reshape(-1), value.shape

    def draw(self, picture: Pixels, value: np.ndarray, names: Sequence[str]) -> str:
        """Replace measured pixels of the picture by depth colours, in place; returns the range of depth."""
        measured = value > UNMEASURED
        picture[measured] = depth_colors(value)[measured]
        seen = value[measured]
        return f"{seen.min():.2f} to {seen.max():.2f} m" if seen.size else "nothing measured"
