"""Predictions of many images, as files for people and programs.

A folder contains `predictions.jsonl` with one line per image; under each image's own name, the picture with its
prediction drawn (`.drawn.jpg`) and the maps of the task (such as `.seg.png`); and `failed.txt` with the images that
could not be read, and why.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import simplejpeg
import torch
from torch import Tensor

from pipeline.cpus import usable_cpus
from pipeline.errors import DataError
from pipeline.images.decode import BadImage, Pixels, decode, read_header
from pipeline.models.spec import Pair
from pipeline.shards import store
from pipeline.shards.parallel import track
from pipeline.shards.pictures import FoundImage, Pictures
from pipeline.tasks.coco_results import CocoIds, CocoResults
from pipeline.tasks.pretrained import PretrainedMiniViT, check_options, unreadable_image, view_of

RECORDS, FAILED, COCO = "predictions.jsonl", "failed.txt", "coco_results.json"
CLIPPED = "clipped_pixels"
DRAWN, QUALITY = ".drawn.jpg", 92

Compute = Callable[..., list[Any]]  # of pixels, sizes and options


class Predicted(NamedTuple):
    """An image with the model's prediction, or the reason why it cannot be read."""

    found: FoundImage
    size: Pair = (0, 0)  # its own height and width
    value: Any = None
    fault: str = ""


@dataclass
class Predictor:
    """Runs a model on batches of images; `options` are those of its task's predictions of all images."""

    model: PretrainedMiniViT
    options: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int = 32

    def __post_init__(self) -> None:
        self.task = self.model.task_module()

    def __call__(self, images: Pictures, compute: Compute | None = None) -> Iterator[list[Predicted]]:
        """Yield predicted batches while threads decode the next one. `compute` defaults to the task's `predict`."""
        compute = compute or self.task.predict
        waiting, rest, first = list[Future[tuple[Predicted, Pixels | None]]](), iter(images), 0
        with ThreadPoolExecutor(usable_cpus()) as pool:
            while True:
                coming = [pool.submit(self._seen, found) for found in islice(rest, self.batch_size)]
                if waiting:
                    yield self._computed(compute, [one.result() for one in waiting], first)
                    first += len(waiting)
                if not coming:
                    return
                waiting = coming

    def _seen(self, found: FoundImage) -> tuple[Predicted, Pixels | None]:
        """The image's size or fault, and its view, uint8 [H, W, C], if readable."""
        if found.data is None:
            return Predicted(found, fault=found.fault), None
        try:
            view, size = view_of(found.data, self.model.view_size, self.model.preprocess)
        except BadImage as bad:
            return Predicted(found, fault=str(bad)), None
        return Predicted(found, size), view

    def _computed(self, compute: Compute, batch: list[tuple[Predicted, Pixels | None]], first: int) -> list[Predicted]:
        views = [view for _, view in batch if view is not None]
        sizes = [one.size for one, view in batch if view is not None]
        options = self._options([row for row, (_, view) in enumerate(batch, first) if view is not None])
        with torch.inference_mode():
            values = iter(compute(self.model.batch_of(views), sizes, **options) if views else [])
        return [one if view is None else one._replace(value=next(values)) for one, view in batch]

    def _options(self, rows: Sequence[int]) -> dict[str, Any]:
        """The options for these of all images."""
        kinds = self.model.task.predict_options
        return {
            name: [value[row] for row in rows] if kinds[name] is list else value for name, value in self.options.items()
        }


def summaries(
    model: PretrainedMiniViT, images: Pictures, limit: int, batch_size: int
) -> Iterator[tuple[str, dict[str, float]]]:
    """Each image's name, and at most `limit` names of its prediction with their shares, largest first.

    Raises DataError for an image that cannot be read, and ModelError if the task predicts no names.
    """

    def summarised(pixels: Tensor, sizes: Sequence[Pair]) -> list[Any]:
        return predictor.task.summarise(pixels, sizes, limit)

    predictor = Predictor(model, batch_size=batch_size)
    for batch in predictor(images, summarised):
        for one in batch:
            if one.fault:
                raise unreadable_image(one.found.name, one.fault)
            yield one.found.name, one.value


def write_predictions(predictor: Predictor, images: Pictures, out: Path, coco: CocoIds | None = None) -> None:
    """Write the model's predictions for all images below `out`; the same images and options write the same files.

    With `coco`, also writes the boxes of all images in COCO's results format.
    Raises DataError, after writing everything else, if images could not be read, and ModelError for options that the
    task does not support, and with `coco` for a task without boxes.
    """
    check_options(predictor.model.task, predictor.options, len(images))
    results = None if coco is None else CocoResults(coco)
    failed, clipped = dict[str, str](), dict[str, int]()
    out.mkdir(parents=True, exist_ok=True)
    (out / FAILED).unlink(missing_ok=True)
    with (out / RECORDS).open("w", encoding="utf-8") as lines:
        for one, record in track(_records(predictor, images, out), len(images), "predicting", "images"):
            if one.fault:
                failed[one.found.name] = one.fault
                print(f"left out: {one.found.name}: {one.fault}", file=sys.stderr, flush=True)
                continue
            lines.write(json.dumps(record) + "\n")
            lines.flush()
            if CLIPPED in record:
                clipped[one.found.name] = record[CLIPPED]
            if results is not None:
                results.add(one.found, record)
    if results is not None:
        store.write_bytes(str(out / COCO), json.dumps(results.rows).encode())
    if clipped:
        print(
            f"clipped: {sum(clipped.values()):,} pixels in the maps of {len(clipped):,} of {len(images):,} images, "
            f"such as {next(iter(clipped))}, exceed the most that these files hold, {predictor.task.file_limit}; "
            f"{CLIPPED} in {out / RECORDS} counts them for each image",
            file=sys.stderr,
            flush=True,
        )
    if failed:
        told = "".join(f"{name}\t{fault}\n" for name, fault in failed.items())
        store.write_bytes(str(out / FAILED), told.encode(errors="backslashreplace"))
        name, fault = next(iter(failed.items()))
        raise DataError(
            f"{len(failed):,} of {len(images):,} images could not be read, such as {name} ({fault}); {out / FAILED} "
            f"lists them, and {out} has the others; fix or remove these files"
        )


def _records(predictor: Predictor, images: Pictures, out: Path) -> Iterator[tuple[Predicted, dict[str, Any]]]:
    """Each image with its record; threads draw and write the files of a batch."""
    with ThreadPoolExecutor(usable_cpus()) as pool:
        for batch in predictor(images):
            yield from zip(batch, pool.map(lambda one: _record(predictor, one, out), batch), strict=True)


def _record(predictor: Predictor, one: Predicted, out: Path) -> dict[str, Any]:
    """Write the files of an image and return its record."""
    if one.fault or one.found.data is None:
        return {}
    files = {suffix: png_of(values) for suffix, values in predictor.task.files(one.value).items()}
    picture = decode(one.found.data, read_header(one.found.data), 3, predictor.model.preprocess.background)
    if (drawn := predictor.task.draw(picture, one.value)) is not picture:
        files[DRAWN] = simplejpeg.encode_jpeg(np.ascontiguousarray(drawn), QUALITY, "RGB", "444")
    for suffix, data in files.items():
        path = out / f"{one.found.below}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        store.write_bytes(str(path), data)
    height, width = one.size
    names = [f"{one.found.below}{suffix}" for suffix in files]
    told = {"image": one.found.name, "height": height, "width": width}
    clipped = predictor.task.clipped(one.value)
    return {
        **told,
        **predictor.task.record(one.value),
        **({"files": names} if names else {}),
        **({CLIPPED: clipped} if clipped else {}),
    }


def png_of(values: np.ndarray) -> bytes:
    """A PNG of uint8 [H, W], [H, W, 3] (RGB) or uint16 [H, W]."""
    assert values.dtype in (np.uint8, np.uint16), f"PNG files hold no {values.dtype}"
    ordered = values[:, :, ::-1] if values.ndim == 3 else values
    return cv2.imencode(".png", np.ascontiguousarray(ordered))[1].tobytes()
