"""Where and how far a model attends, and how it represents patches, on a few test images."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image

from pipeline.config.data import Color, DatasetConfig
from pipeline.errors import DataError
from pipeline.images.decode import BadImage, read_header
from pipeline.images.decode import decode as decode_image
from pipeline.images.plain import plain
from pipeline.models.bundle import Preprocess, load_bundle
from pipeline.models.minivit import MiniViT
from pipeline.models.spec import ViTSpec
from pipeline.report.distances import Distances, measure_distances
from pipeline.report.filters import Filters, principal_filters
from pipeline.report.patch_tokens import token_colors
from pipeline.shards.index import load_offsets
from pipeline.shards.index_file import load_index
from pipeline.shards.members import Keys, Unusable
from pipeline.shards.store import read_range
from pipeline.shards.tar import TornTar, read_sample
from pipeline.targets import tool_targets
from pipeline.targets.base import BadLabel, Target

NUM_IMAGES = 6
LOOKED_THROUGH = 64  # samples searched for images of different classes
MAX_HEADS = 6
CLASSIFIER = "classifier"  # kind of head
LARGEST = 168  # longest allowed shorter side of an image on the page, px


@dataclass(frozen=True)
class TestImage:
    """One sample of the data set: uint8 [H, W, C] and its class number."""

    __test__ = False

    key: str
    pixels: np.ndarray
    label: int | None


@dataclass(frozen=True)
class Glance:
    """One image with the model's attention on it, and the predicted class if the model classifies images.

    Pictures are `data:` URLs of PNG files. Those of attention and tokens have one pixel per patch. Attention pictures
    are opaque where the model attends, and are meant to be overlaid on the image and upscaled smoothly. `small` means
    that the image's individual pixels should be visible.
    """

    image: str
    small: bool
    mean: str
    heads: list[str]
    name: str  # of the class, or of the sample
    predicted: str | None = None
    probability: float = 0.0
    tokens: str = ""

    @property
    def correct(self) -> bool:
        return self.name == self.predicted

    @property
    def alt(self) -> str:
        told = "" if self.predicted is None else f", predicted {self.predicted} ({self.probability:.0%})"
        return f"{self.name}{told}"


class InspectedModel(NamedTuple):
    """What the report shows of a model."""

    glances: list[Glance]
    distances: Distances  # means over the images
    filters: Filters


class InspectedImage(NamedTuple):
    """What the report shows of one image; its `tokens` [N, D] are coloured later, jointly for all images."""

    glance: Glance
    distances: Distances
    tokens: np.ndarray


def inspect_model(bundle: Path, dataset: DatasetConfig) -> InspectedModel:
    """Run the bundle's model on the data set's first images, one of each class as far as possible.

    Raises:
        DataError: the shards are missing or hold no readable image.
        ModelError, CheckpointError: the bundle cannot be loaded.
    """
    found = load_bundle(bundle)
    model = MiniViT.from_state(found.spec, found.state).eval()
    images = choose(first_images(dataset, found.preprocess.channels))
    if not images:
        raise DataError(f"{dataset.shards}: found no readable image in the first {LOOKED_THROUGH} samples")
    named = dataset.classes_of("class_id") or load_index(dataset.shards, check=False).classes.get("class_id")
    labels, classes = named or found.classes or [], found.classes or []
    inspected = [inspect_image(model, found.preprocess, labels, classes, image) for image in images]
    colors = token_colors(np.stack([one.tokens for one in inspected]), found.spec.backbone.grid)
    distances = replace(inspected[0].distances, heads=np.mean([one.distances.heads for one in inspected], axis=0))
    glances = [replace(one.glance, tokens=data_url(color)) for one, color in zip(inspected, colors, strict=True)]
    return InspectedModel(glances, distances, principal_filters(model.patch_embed.proj.weight.detach().float().numpy()))


def first_images(dataset: DatasetConfig, channels: int) -> Iterator[TestImage]:
    """The readable images among the first samples of the first shard that has any."""
    index = load_index(dataset.shards)
    keys = index.keys.override(dataset.image_key)
    config = dataset.targets.of("class_id")
    labels = tool_targets({"class_id": (config and config.members) or index.members.get("class_id", ("cls",))})
    shard = next((shard for shard in index.shards if shard.samples), None)
    if shard is None:
        return
    offsets = load_offsets(shard)[: LOOKED_THROUGH + 1].tolist()
    for start, stop in pairwise(offsets):
        image = decode(read_range(shard.url, start, stop), keys, labels[0], channels, dataset.background)
        if image is not None:
            yield image


def decode(sample: bytes, keys: Keys, labels: Target, channels: int, background: Color) -> TestImage | None:
    """The image and label in the bytes of one sample; None if it holds no readable image."""
    try:
        key, members = read_sample(sample)
        image = keys.image_of(members)
        pixels = decode_image(image, read_header(image), channels, background)
    except (TornTar, Unusable, BadImage):
        return None
    label = None
    with suppress(BadLabel):
        label = labels.number(labels.decode(members, None))
    return TestImage(key, pixels, label)


def choose(images: Iterator[TestImage], limit: int = NUM_IMAGES) -> list[TestImage]:
    """The first image of each class, then the next ones in order, until there are `limit`."""
    fresh: list[TestImage] = []
    spare: list[TestImage] = []
    seen: set[int | None] = set()
    for image in images:
        (spare if image.label in seen else fresh).append(image)
        seen.add(image.label)
        if len(fresh) == limit:
            break
    return (fresh + spare)[:limit]


@torch.inference_mode()
def inspect_image(
    model: MiniViT, preprocess: Preprocess, labels: Sequence[str], classes: Sequence[str], image: TestImage
) -> InspectedImage:
    """Attention on an image and a classifier's prediction; `labels` names the data's classes, `classes` the model's."""

    def name(names: Sequence[str], label: int) -> str:
        return names[label] if label < len(names) else f"class {label}"

    seen = plain(image.pixels, preprocess.image_size, preprocess.background, preprocess.eval)
    batch = preprocess.normalise(torch.from_numpy(seen).permute(2, 0, 1)[None])  # [1, C, H, W]
    spec, maps = model.spec.backbone, model.attention_maps(batch)  # [1, depth, heads, P+N, P+N]
    weights = attention_of_patches(spec, maps[0, -1])
    told: dict[str, Any] = {}
    if any(head.kind == CLASSIFIER for head in model.spec.heads.values()):
        probability, predicted = model(batch)[0].softmax(-1).max(-1)
        told = {"predicted": name(classes, int(predicted)), "probability": float(probability)}

    glance = Glance(
        image=data_url(reduce(image.pixels)),
        small=min(image.pixels.shape[:2]) < LARGEST,
        mean=data_url(heat(weights.mean(axis=0))),
        heads=[data_url(heat(head)) for head in weights[:MAX_HEADS]],
        name=image.key if image.label is None else name(labels, image.label),
        **told,
    )
    tokens = model.forward_features(batch)[0, spec.tokens.num_prefix :].float().numpy()
    return InspectedImage(glance, measure_distances(maps.float().numpy(), spec.grid, model.patch), tokens)


def attention_of_patches(spec: ViTSpec, maps: torch.Tensor) -> np.ndarray:
    """Attention on each patch, float32 [heads, h, w], of a block's [heads, P+N, P+N], whose rows attend to columns.

    It is the class token's attention or, without a class token, the mean over all patches.
    """
    prefix = spec.tokens.num_prefix
    rows = maps[:, 0] if spec.tokens.cls else maps[:, prefix:].mean(dim=1)
    return rows[:, prefix:].float().reshape(-1, *spec.grid).numpy()


def reduce(pixels: np.ndarray) -> np.ndarray:
    """uint8 [H, W, C] as [H', W', 3], with the shorter side at most `LARGEST`."""
    height, width = pixels.shape[:2]
    image = Image.fromarray(np.broadcast_to(pixels, (height, width, 3)).copy())
    scale = LARGEST / min(height, width)
    if scale >= 1:
        return np.asarray(image)
    return np.asarray(image.resize((round(width * scale), round(height * scale)), Image.Resampling.LANCZOS))


def heat(weights: np.ndarray) -> np.ndarray:
    """Attention [h, w] as a colour picture uint8 [h, w, 4]: transparent at its minimum, bright at its maximum.

    The top of the scale is a high quantile, so that a patch with nearly all attention leaves the others visible.
    """
    low, high = float(weights.min()), float(np.quantile(weights, 0.98))
    share = np.clip((weights - low) / max(high - low, 1e-12), 0, 1)
    colored = colormaps["inferno"](0.4 + 0.5 * share)
    colored[..., 3] = 0.9 * share
    return (255 * colored).round().astype(np.uint8)


def data_url(picture: np.ndarray) -> str:
    """A PNG file as a `data:` URL."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
