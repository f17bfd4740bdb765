"""A finished model for inference, as returned by `pipeline.load_model`."""

from __future__ import annotations

import numbers
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import DataError, ModelError
from pipeline.models.bundle import Bundle, Preprocess
from pipeline.models.minivit import MiniViT
from pipeline.models.spec import Pair
from pipeline.tasks.base import TaskModule
from pipeline.tasks.task import BaseTask, own_task

if TYPE_CHECKING:
    from PIL.Image import Image

    from pipeline.images.decode import Data, Pixels

    AnyImage = str | os.PathLike[str] | Image | np.ndarray


# What values of an option of predictions may be, by its declared type.
OPTIONS: Mapping[type, tuple[Any, str]] = {
    int: ((numbers.Integral,), "a whole number from 1 up"),
    float: ((numbers.Real,), "a number"),
    list: ((list, tuple, np.ndarray), "a list with an entry for each image"),
}


class PretrainedMiniViT(MiniViT):
    """A MiniViT with everything needed to use it on images: `preprocess`, `classes`, and its task's predictions."""

    preprocess: Preprocess
    classes: list[str] | None
    task: BaseTask

    @classmethod
    def from_bundle(cls, bundle: Bundle) -> PretrainedMiniViT:
        """The bundle's model in fp32 and eval mode. Raises `ModelError` for an unknown task."""
        task = own_task(bundle)
        model = cls.from_state(bundle.spec, bundle.state)
        model.task = task
        model.preprocess, model.classes = bundle.preprocess, bundle.classes
        return model.float().eval()

    def predict(self, images: Sequence[AnyImage], **options: Any) -> list[Any]:
        """The task's prediction for each image: a path, a PIL image, or a uint8 array [H, W] or [H, W, 1 or 3].

        A classifier returns the `top_k` (default 5) most probable (label, probability) pairs, where a label is the
        class name, or its number without names; a segmentation model returns class maps, arrays of class numbers at the
        images' own sizes. `task_module()` can draw, record and save predictions. Raises `DataError` for an unreadable
        image, and `ModelError` for unknown options or if the task makes no predictions for images.
        """
        task = self.task_module()
        pixels, sizes = self._read(images)
        check_options(self.task, options, len(sizes))
        with torch.inference_mode():
            return task.predict(pixels, sizes, **options) if sizes else []

    def summarise(self, images: Sequence[AnyImage], limit: int) -> list[dict[str, float]]:
        """At most `limit` names with shares for each image's prediction, largest first; raises as `predict` does."""
        pixels, sizes = self._read(images)
        with torch.inference_mode():
            return self.task_module().summarise(pixels, sizes, limit) if sizes else []

    def encode_image(self, images: Sequence[AnyImage]) -> Tensor:
        """Unit embeddings fp32 [images, E]; their dot product with text embeddings is the similarity.

        Raises `DataError` for an unreadable image, `ModelError` for a model without a text encoder.
        """
        pixels, sizes = self._read(images)
        task = self.task_module()
        with torch.inference_mode():
            return task.embed_images(pixels) if sizes else task.embed_sentences([])  # as wide

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Unit embeddings fp32 [texts, E]. Raises `ModelError` for a model without a text encoder."""
        with torch.inference_mode():
            return self.task_module().embed_sentences([texts] if isinstance(texts, str) else texts)

    def task_module(self) -> TaskModule:
        """The model with its task, which predicts and presents predictions: `draw`, `record`, `files`."""
        names = self.classes or [str(number) for number in range(self.spec.num_classes)]
        return self.task.module(self, names, self.preprocess).eval()

    def _read(self, images: Sequence[AnyImage]) -> tuple[Tensor, list[Pair]]:
        """Normalised [B, C, H, W] at the task's input size, and the images' own sizes."""
        if isinstance(images, (str, os.PathLike)):
            raise DataError(f"predict: expected a list of images; give [{os.fspath(images)!r}]")
        views = [_read(image, self.view_size, self.preprocess) for image in images]
        return self.batch_of([seen for seen, _ in views]), [size for _, size in views]

    @property
    def view_size(self) -> Pair:
        """The task's input size, (height, width) in pixels."""
        return self.task.predict_size(self.preprocess.image_size)

    def batch_of(self, views: Sequence[Pixels]) -> Tensor:
        """Normalised [B, C, H, W] from images uint8 [H, W, C] at the task's input size."""
        if not views:
            return torch.empty(0)
        kernel = self.patch_embed.proj.weight
        pixels = torch.from_numpy(np.stack(views).transpose(0, 3, 1, 2).copy())
        return self.preprocess.normalise(pixels.to(kernel.device), kernel.dtype)


def check_options(task: BaseTask, options: Mapping[str, Any], images: int) -> None:
    """Raise ModelError for options that the predictions of so many images do not support."""
    if unknown := options.keys() - task.predict_options:
        known = ", ".join(sorted(task.predict_options)) or "none"
        raise ModelError(f"predict: {min(unknown)} is not an option of a {task.type} model; allowed: {known}")
    for name, value in options.items():
        kind = task.predict_options[name]
        types, words = OPTIONS[kind]
        if not isinstance(value, types) or (kind is int and value < 1):
            raise ModelError(f"predict: {name} is {value!r}, expected {words}")
        if kind is list and len(value) != images:
            raise ModelError(f"predict: {name} has {len(value)} entries for {images} images; give one for each")


def view_of(data: Data, size: Pair, preprocess: Preprocess) -> tuple[Pixels, Pair]:
    """An image file as uint8 [H, W, C] with this size and the model's channels, and the upright image's own size.

    Raises `BadImage`, and `ModelError` if the model does not have 1 or 3 channels.
    """
    from pipeline.images.geometry import Trail
    from pipeline.images.plain import load_plain

    check_channels(preprocess)
    trail = Trail()
    seen = load_plain(data, size, preprocess.channels, preprocess.background, preprocess.eval, trail)
    return seen, trail.geometry.source


def check_channels(preprocess: Preprocess) -> None:
    if preprocess.channels not in (1, 3):
        raise ModelError(f"predict: only supports 1 or 3 channels, but this model takes {preprocess.channels}")


def _read(image: AnyImage, size: Pair, preprocess: Preprocess) -> tuple[Pixels, Pair]:
    """Like `view_of`, for any kind of image. Raises `DataError` for an image that cannot be read."""
    from pipeline.images.decode import BadImage, flatten  # slow to import, needed only here
    from pipeline.images.plain import plain

    check_channels(preprocess)
    if isinstance(image, np.ndarray):
        image = _from_array(image)
    if not isinstance(image, (str, os.PathLike)):
        pixels = flatten(image, preprocess.channels, preprocess.background)
        return plain(pixels, size, preprocess.background, preprocess.eval), (pixels.shape[0], pixels.shape[1])
    try:
        return view_of(Path(image).read_bytes(), size, preprocess)
    except (OSError, BadImage) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise unreadable_image(os.fspath(image), str(reason)) from None


def unreadable_image(name: str, reason: str) -> DataError:
    """The error for an image that cannot be read."""
    return DataError(f"{name}: cannot be read as an image ({reason}); give a PNG, JPEG or WebP file")


def _from_array(array: np.ndarray) -> Image:
    from PIL import Image

    grey = array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array
    if array.dtype != np.uint8 or not array.size or grey.ndim not in (2, 3) or grey.shape[2:] not in ((), (3,)):
        raise DataError(
            f"predict: found an array of {array.dtype} {list(array.shape)}, expected uint8 [H, W] or [H, W, 1 or 3], "
            "RGB"
        )
    return Image.fromarray(np.ascontiguousarray(grey))
