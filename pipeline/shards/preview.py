"""A contact sheet: some samples of a data set side by side, with their labels and keys."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipeline.config.data import WHITE, Color
from pipeline.images.decode import BadImage, read_header
from pipeline.images.load import Box, load_box
from pipeline.shards import store
from pipeline.shards.index import DatasetIndex, load_offsets
from pipeline.shards.members import Keys, Unusable, parse_label
from pipeline.shards.tar import TornTar, read_sample

GAP, CAPTION, MARGIN = 8, 30, 12  # pixels
FONT_SIZE = 11
PAPER, INK, FAINT, FAULT = "white", "#1a1a1a", "#777777", "#b3261e"


def contact_sheet(
    index: DatasetIndex,
    keys: Keys,
    path: Path,
    *,
    count: int = 48,
    columns: int = 8,
    side: int = 128,
    seed: int = 0,
    background: Color = WHITE,
) -> None:
    """Write a PNG of `count` samples drawn by `seed`, in the order of the shards. Raises DataError."""
    chosen = np.random.default_rng(seed).permutation(index.num_samples)[:count]
    cells = [cell(index, keys, int(row), side, background) for row in np.sort(chosen)]
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
        pen.text((x, y + side + 2), fitted(title, font, side), fill=FAULT if picture is None else INK, font=font)
        pen.text((x, y + side + 15), fitted(key, font, side), fill=FAINT, font=font)
    file = io.BytesIO()
    sheet.save(file, "PNG")
    store.write_bytes(str(path), file.getvalue())


def cell(
    index: DatasetIndex, keys: Keys, row: int, side: int, background: Color
) -> tuple[Image.Image | None, str, str]:
    """Picture (None where it is bad), label or fault, and key of the sample at a position of the data set."""
    ends = np.cumsum(index.counts)
    number = int(np.searchsorted(ends, row, side="right"))
    shard, sample = index.shards[number], row - int(ends[number] - index.counts[number])
    start, stop = (int(byte) for byte in load_offsets(shard)[sample : sample + 2])
    try:
        key, members = read_sample(store.read_range(shard.url, start, stop))
    except TornTar as tear:
        return None, f"the tar {tear}", f"#{sample}"
    label = parse_label(bytes(members.get(keys.label, b"")))
    names = index.classes or []
    title = "no label" if label is None else names[label] if label < len(names) else str(label)
    try:
        data = bytes(keys.image_of(members))
        header = read_header(data)
        scale = side / max(header.height, header.width)
        size = max(round(header.height * scale), 1), max(round(header.width * scale), 1)
        pixels = load_box(data, header, Box(0, 0, header.height, header.width), size, 3, background, exact=True)
    except (BadImage, Unusable) as bad:
        return None, str(bad), key
    return Image.fromarray(pixels), title, key


def fitted(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int) -> str:
    """The text, cut with an ellipsis where it is wider than `width` pixels."""
    while text and font.getlength(text) > width:
        text = text[:-2].rstrip("…") + "…"
        if len(text) < 2:
            break
    return text
