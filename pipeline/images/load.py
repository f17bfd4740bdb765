"""Loads a box or frame of an image at a given size: decodes no more than resizing needs."""

from __future__ import annotations

import math

import cv2
import numpy as np

from pipeline.config.data import Color
from pipeline.images.decode import Data, Header, Pixels, decode, decode_jpeg
from pipeline.images.frame import seen_box
from pipeline.images.geometry import Box, Geometry, Size, Trail, Turn, compose, cropped, inverted, shifted, turned

SHRINKS = (8, 4, 2)
SMALL_IMAGE = 64 * 64 * 3  # values, below which a call into torch costs more than it saves


TURNS = {  # by EXIF orientation
    1: Turn(False, False, False),
    2: Turn(False, False, True),
    3: Turn(False, True, True),
    4: Turn(False, True, False),
    5: Turn(True, False, False),
    6: Turn(True, False, True),
    7: Turn(True, True, True),
    8: Turn(True, True, False),
}


def load_box(
    data: Data,
    header: Header,
    box: Box,
    size: Size,
    channels: int,
    background: Color,
    *,
    exact: bool,
    trail: Trail | None = None,
) -> Pixels:
    """A box of the image, resized to `size`; a JPEG is decoded no larger and no further down than the box needs.

    `trail` records the region actually shown: a JPEG decoded at reduced scale is cropped at its reduced pixels, up to 7
    pixels of the full image away from the box.
    """
    if header.frame:
        shrink = next((s for s in SHRINKS if box.height >= s * size[0] and box.width >= s * size[1]), 1)
        turn = TURNS[header.orientation]
        stored = stored_box(box, header, turn)
        rows = stored.top + stored.height
        image = decode_jpeg(data, header, channels, shrink=shrink, rows=rows, exact=exact)
        if image is not None:
            part = image[stored.top // shrink : -(-rows // shrink), stored.left // shrink : -(-stored.right // shrink)]
            if trail is not None:
                shown = Box(
                    stored.top // shrink * shrink,
                    stored.left // shrink * shrink,
                    part.shape[0] * shrink,
                    part.shape[1] * shrink,
                )
                trail.add(of_stored(shown, header, turn, size))
            return upright(resize(part, size[::-1] if turn.transpose else size), turn)
    image = decode(data, header, channels, background)
    # Rarely, EXIF data stored after the pixels contradict the header's orientation: trust the pixels.
    down, across = image.shape[0] / header.height, image.shape[1] / header.width
    top, left = int(box.top * down), int(box.left * across)
    bottom, right = math.ceil((box.top + box.height) * down), math.ceil(box.right * across)
    if trail is not None:
        trail.add(cropped(image.shape[:2], Box(top, left, bottom - top, right - left), size))
    return resize(image[top:bottom, left:right], size)


def load_frame(
    data: Data,
    header: Header,
    frame: Geometry,
    channels: int,
    background: Color,
    trail: Trail | None = None,
) -> Pixels:
    """The part of an image file that a frame shows, uint8 [height, width, channels]; black beyond the image.

    Decodes no more than that, and downsamples by averaging before it warps. Raises BadImage.
    """
    box = seen_box(frame)
    if box is None:
        if trail is not None:
            trail.add(frame)
        return np.zeros((*frame.size, channels), np.uint8)
    scale = min(math.sqrt(abs(np.linalg.det(frame.matrix[:, :2]))), 1.0)
    part_size = max(round(box.height * scale), 1), max(round(box.width * scale), 1)
    own = Trail()
    part = load_box(data, header, box, part_size, channels, background, exact=False, trail=own)
    left = Geometry(part_size, frame.size, compose(inverted(own.geometry.matrix), frame.matrix))
    if trail is not None:
        trail.add(own.geometry)
        trail.add(left)
    out = cv2.warpAffine(part, shifted(left.matrix, 0.5), frame.size[::-1], flags=cv2.INTER_LINEAR)
    return out.reshape(*frame.size, channels)


def of_stored(box: Box, header: Header, turn: Turn, size: Size) -> Geometry:
    """The map from the upright image to a box of its stored pixels, resized and turned to `size`."""
    seen = header.height, header.width
    stored, out = (seen[::-1], size[::-1]) if turn.transpose else (seen, size)
    return turned(stored, turn).inverse().then(cropped(stored, box, out)).then(turned(out, turn))


def stored_box(box: Box, header: Header, turn: Turn) -> Box:
    """Where a box of the upright image lies in the stored pixels."""
    top, left, height, width = box
    if turn.flip_rows:
        top = header.height - top - height
    if turn.flip_columns:
        left = header.width - left - width
    return Box(left, top, width, height) if turn.transpose else Box(top, left, height, width)


def upright(image: Pixels, turn: Turn) -> Pixels:
    """Turns stored pixels upright."""
    if turn == TURNS[1]:
        return image
    if turn.transpose:
        image = image.transpose(1, 0, 2)
    return np.ascontiguousarray(image[:: -1 if turn.flip_rows else 1, :: -1 if turn.flip_columns else 1])


def resize(image: Pixels, size: Size) -> Pixels:
    """Resizes with antialiasing to fewer pixels, bicubically to more.

    To shrink colour images, torch's triangle filter (Pillow's BILINEAR) takes a fifth of the time of OpenCV's area
    average; for grey images it has no fast kernel.
    """
    if image.shape[:2] == size:
        return image
    if image.shape[0] * image.shape[1] <= size[0] * size[1]:
        return cv2.resize(image, size[::-1], interpolation=cv2.INTER_CUBIC).reshape(*size, image.shape[2])
    if image.shape[2] == 1 or image.size < SMALL_IMAGE:
        return cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA).reshape(*size, image.shape[2])
    import torch  # imported only here, as grey images do not need it
    from torch.nn import functional

    # Contiguous and channels-last, as the fast kernel requires. NumPy copies and reshapes faster than torch.
    batch = np.ascontiguousarray(image).reshape(1, *image.shape).transpose(0, 3, 1, 2)
    out = functional.interpolate(torch.from_numpy(batch), size, mode="bilinear", antialias=True)
    return out.numpy().transpose(0, 2, 3, 1)[0]
