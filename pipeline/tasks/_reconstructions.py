"""Pictures of what a model makes of the patches it does not see: original, masked, reconstruction.

Legend: B batch, C channels, (H, W) image, (p, q) patch, M masked patches.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.metrics.pictures import save_picture
from pipeline.models.bundle import Preprocess
from pipeline.models.drop_path import sample_keys
from pipeline.models.masking import Masking
from pipeline.models.patch_embed import patchify, unpatchify
from pipeline.models.spec import Pair
from pipeline.stream.batch import Batch

COUNT = 12  # pictures of an evaluation
CHOICE = 0x50696374  # "Pict": key of which samples are shown, the same for every model and any number of ranks
MIN_SIDE = 112  # pixels; smaller images are shown enlarged by a whole number
GAP = 4  # pixels between the three
GREY = 0.5  # of masked patches
TITLE = "Reconstructions"


class Reconstruction(NamedTuple):
    """What a model predicted for a batch: the masked patches' pixels [B, M, C*p*q], normalised as the images were."""

    pixels: Tensor
    masking: Masking
    patch: Pair


class Reconstructions:
    """Keeps a few samples of an evaluation, drawn by their positions in the data, as pictures of three images each."""

    def __init__(self, preprocess: Preprocess) -> None:
        self.preprocess = preprocess
        self._kept: list[tuple[int, int, np.ndarray]] = []  # (-draw, slot, picture); the largest draw first

    def add(self, predicted: Reconstruction, batch: Batch) -> None:
        """Keep those of the batch whose draw is among the lowest so far."""
        draws = sample_keys(CHOICE, batch.slots)
        for index in (batch.weights > 0).nonzero().flatten().tolist():
            draw = int(draws[index])
            if len(self._kept) < COUNT or draw < -self._kept[0][0]:
                self._keep(-draw, int(batch.slots[index]), self._picture(predicted, batch, index))

    def state(self) -> list[tuple[int, int, np.ndarray]]:
        return self._kept

    def merge(self, state: list[tuple[int, int, np.ndarray]]) -> None:
        for kept in state:
            self._keep(*kept)

    def measures(self) -> dict[str, float]:
        return {}

    def write(self, folder: Path, model: str, classes: Sequence[str]) -> None:
        """One picture per sample, in the order of the data."""
        for _, slot, picture in sorted(self._kept, key=lambda kept: kept[1]):
            title = f"{TITLE} by {model}"
            save_picture(folder, f"{model}-{slot:08d}", picture, title, "original, masked, reconstruction")

    def _keep(self, draw: int, slot: int, picture: np.ndarray) -> None:
        change = heapq.heappush if len(self._kept) < COUNT else heapq.heappushpop
        change(self._kept, (draw, slot, picture))

    def _picture(self, predicted: Reconstruction, batch: Batch, index: int) -> np.ndarray:
        """uint8 [H, 3 W + gaps, 3] or, of a grey image, [H, 3 W + gaps]."""
        one = slice(index, index + 1)
        image = batch.views["image"][one].float() / 255  # [1, C, H, W]
        masking, patch = Masking(*(numbers[one] for numbers in predicted.masking)), predicted.patch
        pixels = self._colours(predicted.pixels[one].float(), patch)
        three = torch.cat([image, paste(image, GREY, masking, patch), paste(image, pixels, masking, patch)])
        return beside(three.clamp(0, 1).mul(255).round().byte().cpu().numpy())

    def _colours(self, pixels: Tensor, patch: Pair) -> Tensor:
        """Values from 0 to 1 of normalised pixels [1, M, C*p*q]."""
        mean, std = (pixels.new_tensor(values)[:, None] for values in (self.preprocess.mean, self.preprocess.std))
        return (pixels.unflatten(2, (len(mean), -1)) * std + mean).flatten(2)


def beside(images: np.ndarray) -> np.ndarray:
    """uint8 [n, C, H, W] -> [H', n W' + gaps, 3] or, of one channel, [H', n W' + gaps]; small ones are enlarged."""
    times = max(-(-MIN_SIDE // min(images.shape[2:])), 1)
    large = images.repeat(times, axis=2).repeat(times, axis=3).transpose(0, 2, 3, 1)
    gap = np.full((large.shape[1], GAP, large.shape[3]), 255, np.uint8)
    row = np.concatenate([part for image in large for part in (gap, image)][1:], axis=1)
    return row[..., 0] if row.shape[2] == 1 else row


def paste(images: Tensor, pixels: Tensor | float, masking: Masking, patch: Pair) -> Tensor:
    """[B, C, H, W] with `pixels`, [B, M, C*p*q] or one value, in place of the masked patches."""
    patches = patchify(images, patch)
    index = masking.masked[..., None].expand(-1, -1, patches.shape[-1])
    source = pixels.to(patches.dtype) if isinstance(pixels, Tensor) else torch.full_like(patches, pixels)
    (height, width), (p, q) = images.shape[-2:], patch
    return unpatchify(patches.scatter(1, index, source), patch, (height // p, width // q))
