"""Grey images, rated by how bright they are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import cv2
import numpy as np

from pipeline.shards.build import build_index
from pipeline.shards.index import DatasetIndex
from pipeline.shards.write import TarWriter, shard_name


def make(
    out: Path,
    *,
    samples: Annotated[int, "number of images"] = 32,
    size: Annotated[int, "side of the images, pixels"] = 16,
) -> DatasetIndex:
    """Grey images, rated from 0 to 1 by how bright they are."""
    rng = np.random.default_rng(0)
    with TarWriter(out / shard_name("train", 0)) as tar:
        for number in range(samples):
            rating = rng.random()
            image = np.full((size, size, 1), round(255 * rating), np.uint8)
            tar.write(f"{number:04d}", {"png": cv2.imencode(".png", image)[1].tobytes(), "rating": b"%.4f" % rating})
        tar.finish()
    return build_index(str(out), workers=1)
