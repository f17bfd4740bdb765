"""A finished model that answers: what `pipeline.load_model` returns."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import DataError, ModelError
from pipeline.models.bundle import Bundle, Preprocess, load_bundle
from pipeline.models.minivit import MiniViT
from pipeline.models.pretrained import find_bundle
from pipeline.models.spec import Pair
from pipeline.tasks.base import TaskModule
from pipeline.tasks.task import BaseTask, own_task

if TYPE_CHECKING:
    from PIL.Image import Image


class PretrainedMiniViT(MiniViT):
    """A MiniViT with what it needs to be used on images: `preprocess`, `classes`, and the predictions of its task."""

    preprocess: Preprocess
    classes: list[str] | None
    task: BaseTask

    @classmethod
    def from_bundle(cls, bundle: Bundle) -> PretrainedMiniViT:
        """The bundle's model in fp32 and eval mode. Raises `ModelError` for a task that there is not."""
        model = cls.from_spec(bundle.spec, init="torch")
        model.task = own_task(bundle)
        model.load_state_dict(bundle.state)
        model.preprocess, model.classes = bundle.preprocess, bundle.classes
        return model.float().eval()

    def predict(self, images: Sequence[str | os.PathLike[str] | Image], **options: Any) -> list[Any]:
        """What the model's task says of each image, a path or a PIL image.

        Of a classifier it is the `top_k` (5) most probable (label, probability), where a label is the class's name, or
        its number without names; a model that segments gives class maps, arrays of numbers at the images' own sizes.
        Raises `DataError` for an unreadable image, `ModelError` for options that the task does not know, or where it
        predicts nothing of images.
        """
        task = self._task()
        if unknown := options.keys() - task.predict_options:
            known = ", ".join(sorted(task.predict_options)) or "none"
            raise ModelError(
                f"predict: {min(unknown)} is not an option of a {self.spec.task} model; known are: {known}"
            )
        pixels, sizes = self._read(images)
        with torch.inference_mode():
            return task.predict(pixels, sizes, **options) if sizes else []

    def summarise(self, images: Sequence[str | os.PathLike[str] | Image], limit: int) -> list[dict[str, float]]:
        """Of each image's prediction at most `limit` names with their shares, largest first; errors as of `predict`."""
        pixels, sizes = self._read(images)
        with torch.inference_mode():
            return self._task().summarise(pixels, sizes, limit) if sizes else []

    def encode_image(self, images: Sequence[str | os.PathLike[str] | Image]) -> Tensor:
        """Embeddings fp32 [images, E] of length 1; a product with those of texts is their similarity.

        Raises `DataError` for an unreadable image, `ModelError` for a model that knows no texts.
        """
        pixels, _ = self._read(images)
        with torch.inference_mode():
            return self._task().embed_images(pixels)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Embeddings fp32 [texts, E] of length 1. Raises `ModelError` for a model that knows no texts."""
        with torch.inference_mode():
            return self._task().embed_sentences([texts] if isinstance(texts, str) else texts)

    def _task(self) -> TaskModule:
        names = self.classes or [str(number) for number in range(self.spec.num_classes)]
        return self.task.module(self, names, self.preprocess).eval()

    def _read(self, images: Sequence[str | os.PathLike[str] | Image]) -> tuple[Tensor, list[Pair]]:
        """Normalised [B, C, H, W] at the size that the task looks at, and the images' own sizes."""
        if isinstance(images, (str, os.PathLike)):
            raise DataError(f"predict: takes a list of images; give [{os.fspath(images)!r}]")
        group = next(iter(self.task.view_groups(evaluation=True).values()))
        pixels, sizes = [], []
        for image in images:
            seen, size = _read(image, group.size or self.preprocess.image_size, self.preprocess)
            pixels.append(torch.from_numpy(seen.transpose(2, 0, 1).copy()))
            sizes.append(size)
        if not images:
            return torch.empty(0), []
        kernel = self.patch_embed.proj.weight
        return self.preprocess.normalise(torch.stack(pixels).to(kernel.device), kernel.dtype), sizes


def load_pretrained(path: str | os.PathLike[str]) -> PretrainedMiniViT:
    """See `pipeline.load_model`."""
    return PretrainedMiniViT.from_bundle(load_bundle(find_bundle(path)))


def _read(image: str | os.PathLike[str] | Image, size: Pair, preprocess: Preprocess) -> tuple[np.ndarray, Pair]:
    """uint8 [H, W, C] at a size and the model's channels, and the size (height, width) of the upright image."""
    from pipeline.images.decode import BadImage, flatten  # slow to import, needed only here
    from pipeline.images.geometry import Trail
    from pipeline.images.plain import load_plain, plain

    channels, background, how = preprocess.channels, preprocess.background, preprocess.eval
    if channels not in (1, 3):
        raise ModelError(f"predict: reads images of 1 or 3 channels; this model takes {channels}")
    if not isinstance(image, (str, os.PathLike)):
        pixels = flatten(image, channels, background)
        return plain(pixels, size, background, how), (pixels.shape[0], pixels.shape[1])
    trail = Trail()
    try:
        seen = load_plain(Path(image).read_bytes(), size, channels, background, how, trail)
    except (OSError, BadImage) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(
            f"{os.fspath(image)}: cannot be read as an image ({reason}); give a PNG, JPEG or WebP file"
        ) from None
    return seen, trail.geometry.source
