"""Photographs for measuring loaders, cropped from those that scikit-image and scikit-learn ship.

Decoding speed depends on the detail in a file: noise and flat colour mislead. So each picture is a crop of a real
photograph, scaled, and tiled with its mirror images if a large picture needs more pixels than the crop has.
"""

from __future__ import annotations

import io
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from pipeline.errors import DataError
from pipeline.shards.build import build_index, folder_lock
from pipeline.shards.index import DatasetIndex
from pipeline.shards.parallel import map_shards
from pipeline.shards.write import TarWriter, shard_name

SETS = {"500x375": (375, 500, 2048), "2000x1500": (1500, 2000, 384)}  # height, width, number of pictures
QUALITY = 90
SHARDS = 8
LARGEST_CUT = (750, 1000)  # larger pictures are mirrored, not enlarged, to keep a camera's detail per pixel
PHOTOS = {
    "skimage": [
        f"data/{name}"
        for name in ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png", "retina.jpg")
    ],
    "sklearn": ["datasets/images/china.jpg", "datasets/images/flower.jpg"],
}
NUM_CLASSES = 10
MASK_CLASSES, MASK_BLOBS = 21, 4


def photographs() -> list[np.ndarray]:
    """The packages' photographs, uint8 [H, W, 3] as OpenCV reads them. Raises DataError if one is not installed."""
    images = []
    for package, names in PHOTOS.items():
        spec = find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise DataError(
                f"the photographs need the package {package}; pip install 'minivit-pipeline[bench]', or give --shards"
            )
        folder = Path(next(iter(spec.submodule_search_locations)))
        images += [image for name in names if (image := cv2.imread(str(folder / name))) is not None]
    return images


def ensure_photos(folder: Path, name: str, workers: int | None = None, *, masks: bool = False) -> DatasetIndex:
    """One of SETS as shards `folder/NAME-*.tar`, with `masks` as `folder/NAME-masks-*.tar`; written if missing."""
    folder.mkdir(parents=True, exist_ok=True)
    prefix = f"{name}-masks" if masks else name
    pattern = f"{folder}/{prefix}-{{000000..{SHARDS - 1:06d}}}.tar"
    with folder_lock(str(folder), "make"):
        missing = [number for number in range(SHARDS) if not (folder / shard_name(prefix, number)).is_file()]
        write = partial(write_photo_shard, folder, name, prefix, masks)
        for _ in map_shards(write, missing, label=f"photographs {prefix}", workers=workers):
            pass
    return build_index(pattern, classes=[str(label) for label in range(NUM_CLASSES)], workers=workers)


def write_photo_shard(folder: Path, name: str, prefix: str, masks: bool, number: int) -> None:
    """Write a shard of pictures that depend only on its name and number."""
    height, width, samples = SETS[name]
    sources = photographs()
    rng = np.random.default_rng([height, number])
    with TarWriter(folder / shard_name(prefix, number)) as tar:
        for i in range(samples // SHARDS):
            picture = mirrored(random_crop(sources, height, width, rng), height, width)
            jpeg = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()
            label = str(int(rng.integers(NUM_CLASSES))).encode()
            mask = {"seg.png": blob_class_map(height, width, rng)} if masks else {}
            tar.write(f"{number:03d}{i:05d}", {"jpg": jpeg, "cls": label, **mask})
        tar.finish()


def blob_class_map(height: int, width: int, rng: np.random.Generator) -> bytes:
    """A palette PNG of a few blobs, each with a margin of ignored pixels, as in VOC."""
    hills = cv2.resize(rng.uniform(0, MASK_BLOBS, (2, 3)), (width, height), interpolation=cv2.INTER_CUBIC)
    classes = rng.choice(MASK_CLASSES, MASK_BLOBS, replace=False).astype(np.uint8)
    ids = classes[hills.clip(0, MASK_BLOBS - 1).astype(int)]
    ids[cv2.morphologyEx(ids, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0] = 255
    image = Image.fromarray(ids)
    image.putpalette(rng.bytes(768))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def random_crop(sources: list[np.ndarray], height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """A random crop of a random photograph, at most LARGEST_CUT large."""
    height, width = min(height, LARGEST_CUT[0]), min(width, LARGEST_CUT[1])
    source = sources[rng.integers(len(sources))]
    scale = min(source.shape[0] / height, source.shape[1] / width) * rng.uniform(0.7, 1)
    h, w = int(height * scale), int(width * scale)
    top, left = rng.integers(source.shape[0] - h + 1), rng.integers(source.shape[1] - w + 1)
    part = source[top : top + h, left : left + w]
    if rng.random() < 0.5:
        part = np.ascontiguousarray(part[:, ::-1])
    return cv2.resize(part, (width, height), interpolation=cv2.INTER_AREA if scale > 1 else cv2.INTER_CUBIC)


def mirrored(part: np.ndarray, height: int, width: int) -> np.ndarray:
    """Tile the part and its mirror images until they fill the size."""
    down, across = -(-height // part.shape[0]), -(-width // part.shape[1])
    row = np.concatenate([part[:, :: -1 if i % 2 else 1] for i in range(across)], axis=1)
    return np.concatenate([row[:: -1 if i % 2 else 1] for i in range(down)], axis=0)[:height, :width]
