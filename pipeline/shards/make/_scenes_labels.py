"""A scene as the members of a sample: the picture, and each kind of label in its usual format."""

from __future__ import annotations

import io
import json
from typing import Any

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from pipeline.metrics.keypoints import HIDDEN, VISIBLE
from pipeline.shards.make._scenes_draw import Scene, SceneItem
from pipeline.shards.make.fashion_mnist import CLASSES

JPEG_QUALITY = 95
DEPTH_PNG = (cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_SUB, cv2.IMWRITE_PNG_COMPRESSION, 3)  # small for slopes
# For viewing class maps: black for the wall, then a colour for each class.
PALETTE = bytes.fromhex("000000e6194b3cb44bffe1194363d8f58231911eb442d4f4f032e6bfef45fabed4")


def sample_members(scene: Scene, caption: str) -> dict[str, bytes]:
    """The bytes of a scene's members by extension."""
    return {
        "jpg": simplejpeg.encode_jpeg(scene.image, JPEG_QUALITY, "RGB", "444"),
        "seg.png": indexed_png(visible_classes(scene)),
        "depth.png": cv2.imencode(".png", scene.depth_mm, DEPTH_PNG)[1].tobytes(),
        "json": json.dumps(coco(scene) | {"caption": caption}, separators=(",", ":")).encode(),
        "txt": caption.encode(),
    }


def visible_classes(scene: Scene) -> np.ndarray:
    """Uint8 [H, W]: 0 for the wall, otherwise 1 + Fashion-MNIST's class."""
    return np.array([0, *(item.label + 1 for item in scene.items)], np.uint8)[scene.owner]


def indexed_png(ids: np.ndarray) -> bytes:
    """A PNG with one 8-bit channel whose values are the ids; its palette is only for viewing."""
    image = Image.frombytes("P", ids.shape[::-1], ids.tobytes())
    image.putpalette(PALETTE.ljust(3 * 17, b"\0"))  # Pillow packs pixels into 4 bits if 16 colours suffice
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def coco(scene: Scene) -> dict[str, Any]:
    """Size and annotations in COCO's format; boxes, areas and segmentations cover the visible part of an item.

    A pixel covers [column, column + 1) x [row, row + 1), so a keypoint lies at its pixel's centre.
    """
    height, width = scene.owner.shape
    annotations = [annotation(item, scene.owner, number) for number, item in enumerate(scene.items, 1)]
    return {"width": width, "height": height, "annotations": annotations}


def annotation(item: SceneItem, owner: np.ndarray, number: int) -> dict[str, Any]:
    """The annotation of item `number` in `owner`: COCO's entries, and its colour and depth (millimetres)."""
    seen = owner == number
    rows, columns = (np.flatnonzero(seen.any(axis)) for axis in (1, 0))
    keypoints = [value for x, y in item.points.tolist() for value in keypoint(x, y, owner, number)]
    box = columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1
    return {
        "category_id": item.label + 1,
        "category": CLASSES[item.label],
        "bbox": [int(value) for value in box],
        "area": int(seen.sum()),
        "iscrowd": 0,
        "segmentation": {"size": list(owner.shape), "counts": run_lengths(seen)},
        "keypoints": keypoints,
        "num_keypoints": sum(v > 0 for v in keypoints[2::3]),
        "depth": float(item.depth_mm),
        "color": item.colour,
    }


def keypoint(x: int, y: int, owner: np.ndarray, number: int) -> tuple[float, float, int]:
    """COCO's x, y, v: zeros outside the picture; as it is on the silhouette, only nearer items can hide it."""
    if not (0 <= y < owner.shape[0] and 0 <= x < owner.shape[1]):
        return 0, 0, 0
    return x + 0.5, y + 0.5, VISIBLE if owner[y, x] == number else HIDDEN


def run_lengths(mask: np.ndarray) -> list[int]:
    """COCO's uncompressed run lengths of a mask, column by column, zeros first."""
    flat = mask.ravel(order="F")
    bounds = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *bounds.tolist(), flat.size]).tolist()
    return [0, *runs] if flat[0] else runs
