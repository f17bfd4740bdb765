"""Instances of a batch for evaluation, and instances cropped from whole images for predictions.

Legend: B images, n instances of all images, K keypoints, (h, w) a view of an instance.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.config.data import PlainConfig
from pipeline.errors import ModelError
from pipeline.images.frame import frame_matrix
from pipeline.images.geometry import compose, inverted
from pipeline.images.plain import geometry
from pipeline.models.spec import Pair

SAMPLES = 2  # along each side of a view's pixel


class BatchInstances(NamedTuple):
    """All instances of a batch, image by image."""

    views: Tensor  # uint8 [n, C, h, w]
    keypoints: Tensor  # float64 [n, K, 3]: (x, y) in pixels of the image, v
    boxes: Tensor  # float64 [n, 4]
    areas: Tensor  # float64 [n]
    counts: list[int]  # instances of each image

    @classmethod
    def of(cls, targets: Any, channels: int, view: Pair) -> BatchInstances:
        offsets = targets["instance_boxes.offsets"]
        return cls(
            targets["instance_views"].view(-1, channels, *view),
            targets["instance_keypoints"],
            targets["instance_boxes"],
            targets["instance_areas"],
            (offsets[1:] - offsets[:-1]).tolist(),
        )


def frames(boxes: np.ndarray, view: Pair, like: Tensor) -> tuple[Tensor, Tensor]:
    """Matrices from the image to the view of each box and back: float64 [n, 2, 3] each, on the device of `like`."""
    there = [frame_matrix(box, view) for box in boxes]
    both = (np.array(some, np.float64).reshape(-1, 2, 3) for some in (there, [inverted(one) for one in there]))
    out, back = (torch.from_numpy(some).to(like.device) for some in both)
    return out, back


def moved(points: Tensor, matrices: Tensor) -> Tensor:
    """Transform points [n, K, 2] by each instance's matrix [n, 2, 3]; returns float64 [n, K, 2]."""
    return points.double() @ matrices[:, :, :2].transpose(1, 2) + matrices[:, None, :, 2]


def cut_out(image: Tensor, full: Pair, boxes: np.ndarray, view: Pair, how: PlainConfig, black: Tensor) -> Tensor:
    """Views [n, C, h, w] of boxes [n, 4] of an image whose original size is `full`, given resized as [C, H, W].

    `how` is how it was resized. Pixels outside it are `black`, [C, 1, 1].
    """
    seen = geometry(full, (image.shape[1], image.shape[2]), how).matrix
    fine = SAMPLES * view[0], SAMPLES * view[1]
    step = np.array([[1 / SAMPLES, 0, 0], [0, 1 / SAMPLES, 0]])
    # From the finer view to the resized image.
    back = [compose(step, compose(inverted(frame_matrix(box, view)), seen)) for box in boxes]
    theta = torch.from_numpy(np.array(back))
    rows, columns = (torch.arange(side, dtype=torch.float64) + 0.5 for side in fine)
    grid = torch.stack(torch.broadcast_tensors(columns[None, :], rows[:, None]), dim=2).view(1, -1, 2)
    points = moved(grid.expand(len(boxes), -1, -1), theta).view(len(boxes), *fine, 2)
    sides = torch.tensor([image.shape[2], image.shape[1]], dtype=torch.float64)
    where = (2 * points / sides - 1).to(image.device, torch.float32)
    shown = F.grid_sample((image.float() - black)[None].expand(len(boxes), -1, -1, -1), where, align_corners=False)
    return (F.avg_pool2d(shown, SAMPLES) + black).to(image.dtype)


def boxes_of(given: Any, sizes: Sequence[Pair]) -> list[np.ndarray]:
    """The boxes of each image, float64 [n, 4]; defaults to the whole image. Raises ModelError for invalid boxes."""
    if given is None:
        return [np.array([[0, 0, width, height]], np.float64) for height, width in sizes]
    found = []
    for number, listed in enumerate(given):
        try:
            boxes = np.array(listed, np.float64).reshape(len(listed), 4)
        except (TypeError, ValueError):
            raise ModelError(
                f"predict: boxes of image {number} are not a list of [left, top, right, bottom]; give four numbers each"
            ) from None
        if not (np.isfinite(boxes).all() and (boxes[:, 2:] > boxes[:, :2]).all()):
            raise ModelError(
                f"predict: a box of image {number} has no area or an invalid position; give [left, top, right, "
                "bottom] in pixels"
            )
        found.append(boxes)
    return found
