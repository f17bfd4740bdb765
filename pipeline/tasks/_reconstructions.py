"""Pictures of a model's reconstructions of masked patches: original, masked, reconstruction.

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

COUNT = 12  # pictures per evaluation
CHOICE = 0x50696374  # "Pict": key that selects the samples to show, the same for every model and number of ranks
MIN_SIDE = 112  # pixels; smaller images are enlarged by an integer factor
GAP = 4  # pixels between the three images
GREY = 0.5  # value of masked patches
TITLE = "Reconstructions"


class Reconstruction(NamedTuple):
    """A model's predictions for a batch: the masked patches' pixels [B, M, C*p*q], normalised like the images."""

    pixels: Tensor
    masking: Masking
    patch: Pair


class Reconstructions:
    """Keeps a few samples of an evaluation, selected by data position, as pictures of three images each."""

    def __init__(self, preprocess: Preprocess) -> None:
        self.preprocess = preprocess
        self._kept: list[tuple[int, int, np.ndarray]] = []  # (-draw, slot, picture); the largest draw first

    def add(self, predicted: Reconstruction, batch: Batch) -> None:
        """Keep the batch's samples whose draws are among the lowest so far."""
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
        """Write one picture per sample, in data order."""
        for _, slot, picture in sorted(self._kept, key=lambda kept: kept[1]):
            title = f"{TITLE} by {model}"
            save_picture(folder, f"{model}-{slot:08d}", picture, title, "original, masked, reconstruction")

    def _keep(self, draw: int, slot: int, picture: np.ndarray) -> None:
        change = heapq.heappush if len(self._kept) < COUNT else heapq.heappushpop
        change(self._kept, (draw, slot, picture))

    def _picture(self, predicted: Reconstruction, batch: Batch, index: int) -> np.ndarray:
        """uint8 [H, 3 W + gaps, 3], or [H, 3 W + gaps] for a greyscale image."""
        one = slice(index, index + 1)
        image = batch.views["image"][one].float() / 255  # [1, C, H, W]
        masking, patch = Masking(*(numbers[one] for numbers in predicted.masking)), predicted.patch
        pixels = self._colours(predicted.pixels[one].float(), patch)
        three = torch.cat([image, paste(image, GREY, masking, patch), paste(image, pixels, masking, patch)])
        return side_by_side(three.clamp(0, 1).mul(255).round().byte().cpu().numpy())

    def _colours(self, pixels: Tensor, patch: Pair) -> Tensor:
        """Denormalise pixels [1, M, C*p*q] to values from 0 to 1."""
        mean, std = (pixels.new_tensor(values)[:, None] for values in (self.preprocess.mean, self.preprocess.std))
        return (pixels.unflatten(2, (len(mean), -1)) * std + mean).flatten(2)


def side_by_side(images: np.ndarray) -> np.ndarray:
    """uint8 [n, C, H, W] -> [H', n W' + gaps, 3], or [H', n W' + gaps] for one channel; enlarges small images."""
    times = max(-(-MIN_SIDE // min(images.shape[2:])), 1)
    large = images.repeat(times, axis=2).repeat(times, axis=3).transpose(0, 2, 3, 1)
    gap = np.full((large.shape[1], GAP, large.shape[3]), 255, np.uint8)
    row = np.concatenate([part for image in large for part in (gap, image)][1:], axis=1)
    return row[..., 0] if row.shape[2] == 1 else row


def paste(images: Tensor, pixels: Tensor | float, masking: Masking, patch: Pair) -> Tensor:
    """Replace the masked patches of images [B, C, H, W] by `pixels`, [B, M, C*p*q] or one value."""
    patches = patchify(images, patch)
    index = masking.masked[..., None].expand(-1, -1, patches.shape[-1])
    source = pixels.to(patches.dtype) if isinstance(pixels, Tensor) else torch.full_like(patches, pixels)
    (height, width), (p, q) = images.shape[-2:], patch
    return unpatchify(patches.scatter(1, index, source), patch, (height // p, width // q))
