"""Depth maps: 16-bit grey PNG files, 0 where nothing was measured; and the colours to draw them in."""

from __future__ import annotations

import contextlib

import cv2
import numpy as np

from pipeline.images.class_map import GREY, HEADER, HEADER_AT, SIGNATURE
from pipeline.images.decode import MAX_PIXELS, BadImage, Data, Pixels
from pipeline.images.geometry import Size

DEPTH_BITS = 16
MOST_STEPS = (1 << DEPTH_BITS) - 1
UNMEASURED = 0
SHARES = 2.0, 98.0  # percentiles of depth at the ends of the colour scale


class ShallowDepth(BadImage):
    """A PNG with too few bits or in colour, which usually means that a converter ruined the whole data set."""


def read_depth_size(data: Data) -> Size:
    """(height, width) of a depth map, without decoding it. Raises BadImage if it is not one."""
    start = bytes(data[:HEADER_AT])
    if not start.startswith(SIGNATURE) or not start.endswith(b"IHDR") or len(data) < HEADER_AT + HEADER.size:
        raise BadImage("the depth map is not a PNG; write 16-bit grey PNGs")
    width, height, bits, color, _ = HEADER.unpack_from(data, HEADER_AT)
    if color != GREY or bits != DEPTH_BITS:
        what = f"with {bits} bits" if color == GREY else "in colour or with a palette"
        raise ShallowDepth(
            f"a depth PNG {what}, but depth maps must be 16-bit grey PNGs; write them again from the measurements, "
            "such as cv2.imwrite(path, (1000 * metres).round().astype('uint16'))"
        )
    if width * height > MAX_PIXELS:
        raise BadImage(f"the depth map has {width} x {height} pixels, more than {MAX_PIXELS}")
    return height, width


def decode_depth(data: Data) -> np.ndarray:
    """Depth in the file's own steps, uint16 [height, width]. Raises BadImage."""
    size, steps = read_depth_size(data), None
    with contextlib.suppress(cv2.error):
        steps = cv2.imdecode(np.frombuffer(bytes(data), np.uint8), cv2.IMREAD_ANYDEPTH | cv2.IMREAD_GRAYSCALE)
    if steps is None or steps.shape != size or steps.dtype != np.uint16:
        raise BadImage("the depth map is truncated or damaged")
    return steps


def depth_colors(metres: np.ndarray, limits: tuple[float, float] | None = None) -> Pixels:
    """Depth [height, width] as RGB: red is near, blue is far, black was not measured.

    `limits` are the nearest and the farthest depth of the colour scale; default: `depth_limits`.
    """
    near, far = (1 / side for side in limits or depth_limits(metres))
    measured = metres > UNMEASURED
    # Disparity resolves near depths better.
    nearness = (1 / np.where(measured, metres, 1) - far) / max(near - far, 1e-9)
    colors = cv2.applyColorMap((255 * nearness.clip(0, 1)).round().astype(np.uint8), cv2.COLORMAP_TURBO)[..., ::-1]
    return np.where(measured[..., None], colors, 0).astype(np.uint8)


def depth_limits(metres: np.ndarray) -> tuple[float, float]:
    """The SHARES percentiles of the measured depths; 1 and 2 metres if nothing was measured."""
    measured = metres[metres > UNMEASURED]
    if not measured.size:
        return 1.0, 2.0
    near, far = np.percentile(measured, SHARES).tolist()
    return near, far


def millimetres(metres: np.ndarray) -> np.ndarray:
    """Depth as `targets.depth` reads it by default, uint16 [height, width], clipped to 1 mm to 65.535 m."""
    return (metres * 1000).round().clip(1, MOST_STEPS).astype(np.uint16)
