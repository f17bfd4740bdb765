"""A frozen teacher that gets the student's images with its own preprocessing.

Legend: B batch, C channels, (H, W) image, K classes, P prefix tokens, (h, w) grid, N = h * w patches, D width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.models.bundle import Bundle, Preprocess
from pipeline.models.constants import constant
from pipeline.models.minivit import MiniViT
from pipeline.models.spec import Pair
from pipeline.tasks._teacher import Frozen


class Seen(NamedTuple):
    """Tokens of a teacher's last layer, fp32."""

    cls: Tensor | None  # [B, 1, D]; None without class token
    patches: Tensor  # [B, N, D]
    grid: Pair


class Teacher:
    """The model of a bundle, which gets images at its own size and normalisation.

    `preprocess` is the student's. Each method takes the student's images, possibly mixed and erased, as normalised
    [B, C, H, W], and one of the student's weights, whose device and dtype the teacher uses.
    """

    def __init__(self, bundle: Bundle, preprocess: Preprocess, *, shard: bool = False) -> None:
        with torch.device("meta"):
            model = MiniViT.from_spec(bundle.spec, init="torch")
        model.load_state_dict(bundle.state, assign=True)
        self._frozen = Frozen(model, shard=shard)
        self.spec, self.classes = bundle.spec, bundle.classes
        self.preprocess, self.student = bundle.preprocess, preprocess

    @torch.no_grad()
    def logits(self, images: Tensor, weight: Tensor) -> Tensor:
        """Logits fp32 [B, K] for the teacher's own classes."""
        logits: Tensor = self._frozen.model_like(weight)(self.images(images)).float()
        return logits

    @torch.no_grad()
    def tokens(self, images: Tensor, weight: Tensor) -> Seen:
        """The last layer's class token and patches."""
        model, schema, seen = self._frozen.model_like(weight), self.spec.backbone.tokens, self.images(images)
        grid = self.spec.backbone.grid_for((seen.shape[-2], seen.shape[-1]))
        tokens = model.forward_features(seen).float()
        return Seen(tokens[:, :1] if schema.cls else None, tokens[:, schema.num_prefix :], grid)

    def images(self, images: Tensor) -> Tensor:
        """The student's images resized to the teacher's size with antialiasing and normalised with its statistics."""
        ours, theirs = self.student, self.preprocess
        if (ours.mean, ours.std) == (theirs.mean, theirs.std) and images.shape[-2:] == theirs.image_size:
            return images
        pixels = images * _channels(ours.std, images) + _channels(ours.mean, images)  # from 0 to 1
        if pixels.shape[-2:] != theirs.image_size:
            pixels = F.interpolate(pixels, theirs.image_size, mode="bicubic", antialias=True).clamp(0, 1)
        return (pixels - _channels(theirs.mean, images)) / _channels(theirs.std, images)


def _channels(values: tuple[float, ...], images: Tensor) -> Tensor:
    """[1, C, 1, 1] on the images' device."""
    return constant(values, images.device).view(1, -1, 1, 1)
