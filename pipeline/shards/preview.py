"""A contact sheet: some samples of a data set side by side, with their labels and keys."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipeline.config.data import WHITE, Color
from pipeline.errors import DataError
from pipeline.images.decode import BadImage, Pixels, read_header
from pipeline.images.geometry import Box, Geometry, Trail
from pipeline.images.load import load_box
from pipeline.shards import store
from pipeline.shards.index import DatasetIndex, load_offsets
from pipeline.shards.members import Keys, Unusable
from pipeline.shards.named_sets import NamedSet
from pipeline.shards.tar import TornTar, read_sample
from pipeline.targets.base import BadLabel, Target

GAP, CAPTION, MARGIN = 8, 30, 12  # pixels
FONT_SIZE = 11
PAPER, INK, FAINT, FAULT = "white", "#1a1a1a", "#777777", "#b3261e"


def contact_sheet(
    one: NamedSet,
    path: Path,
    *,
    count: int = 48,
    columns: int = 8,
    side: int = 128,
    seed: int = 0,
    background: Color = WHITE,
) -> None:
    """Write a PNG of `count` samples drawn by `seed`, in the order of the shards. Raises DataError.

    A label that would cover the picture, such as depth, follows in a cell of its own.
    """
    index = one.open()
    keys, targets = one.keys(index), one.targets(index)
    names = one.classes(index, [target.kind for target in targets])
    chosen = np.random.default_rng(seed).permutation(index.num_samples)[:count]
    cells = [
        cell for row in np.sort(chosen) for cell in cells_of(index, keys, targets, names, int(row), side, background)
    ]
    rows = -(-max(len(cells), 1) // columns)
    size = (2 * MARGIN + columns * (side + GAP) - GAP, 2 * MARGIN + rows * (side + CAPTION + GAP) - GAP)
    sheet = Image.new("RGB", size, PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT_SIZE)
    for number, (picture, title, key) in enumerate(cells):
        x = MARGIN + number % columns * (side + GAP)
        y = MARGIN + number // columns * (side + CAPTION + GAP)
        if picture is None:
            pen.rectangle([x, y, x + side - 1, y + side - 1], outline=FAULT)
        else:
            sheet.paste(picture, (x + (side - picture.width) // 2, y + (side - picture.height) // 2))
        pen.text((x, y + side + 2), shortened(title, font, side), fill=FAULT if picture is None else INK, font=font)
        pen.text((x, y + side + 15), shortened(key, font, side), fill=FAINT, font=font)
    file = io.BytesIO()
    sheet.save(file, "PNG")
    store.write_bytes(str(path), file.getvalue())


def cells_of(
    index: DatasetIndex,
    keys: Keys,
    targets: Sequence[Target],
    names: Mapping[str, Sequence[str]],
    row: int,
    side: int,
    background: Color,
) -> list[tuple[Image.Image | None, str, str]]:
    """A sample's pictures with its labels (None if it is bad), their captions or its fault, and its key."""
    ends = np.cumsum(index.counts)
    number = int(np.searchsorted(ends, row, side="right"))
    shard, sample = index.shards[number], row - int(ends[number] - index.counts[number])
    start, stop = (int(byte) for byte in load_offsets(shard)[sample : sample + 2])
    try:
        key, members = read_sample(store.read_range(shard.url, start, stop))
    except TornTar as tear:
        return [(None, f"the tar {tear}", f"#{sample}")]
    try:
        data = bytes(keys.image_of(members))
        header = read_header(data)
        scale = side / max(header.height, header.width)
        size = max(round(header.height * scale), 1), max(round(header.width * scale), 1)
        whole, trail = Box(0, 0, header.height, header.width), Trail()
        pixels = load_box(data, header, whole, size, 3, background, exact=True, trail=trail)
    except (BadImage, Unusable) as bad:
        return [(None, str(bad), key)]
    over = [target for target in targets if not target.covers]
    instead = [[target] for target in targets if target.covers and members.keys() >= set(target.members)]
    cells: list[tuple[Image.Image | None, str, str]] = []
    for drawn in [over, *instead]:
        picture = np.array(pixels)  # to draw into
        captions = [draw_label(picture, target, members, trail.geometry, names) for target in drawn]
        title = ", ".join(filter(None, captions)) or ("" if instead else "no label")
        cells.append((Image.fromarray(picture), title, key))
    return cells


def draw_label(
    picture: Pixels,
    target: Target,
    members: Mapping[str, memoryview],
    geometry: Geometry,
    names: Mapping[str, Sequence[str]],
) -> str:
    """Draws a label and returns its caption; empty if there is no label, the fault if it is bad."""
    if not members.keys() >= set(target.members):
        return ""
    try:
        value = target.decode(members, geometry.source)
    except (BadLabel, DataError) as error:
        return str(error)
    moved = target.transform(value, geometry) if target.moves else value
    return target.draw(picture, moved, names.get(target.kind, []))


def shortened(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int) -> str:
    """The text, truncated with an ellipsis if it is wider than `width` pixels."""
    while text and font.getlength(text) > width:
        text = text[:-2].rstrip("…") + "…"
        if len(text) < 2:
            break
    return text
