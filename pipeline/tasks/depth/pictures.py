"""Predicted depth drawn next to measured depth, with the same colours for the same metres."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw

from pipeline.images.depth_map import depth_colors, depth_limits
from pipeline.tasks._pictures import GAP, SIDE, FirstMaps, MapExample, side_by_side

LINE = 18  # pixels


class DepthMaps(FirstMaps):
    """Depth maps; 0 marks unmeasured pixels."""

    field, name = "depth_full", "depth"
    title = "Depth by {model}: image, measured, predicted"

    def drawn(self, one: MapExample, classes: Sequence[str]) -> Image.Image:
        near, far = limits = depth_limits(one.labels)
        key = Image.new("RGB", (3 * (SIDE + GAP), LINE), "white")
        ImageDraw.Draw(key).text((0, 0), f"red {near:.2f} m to blue {far:.2f} m", fill="black")
        return side_by_side([one.image, depth_colors(one.labels, limits), depth_colors(one.predicted, limits)], key)
