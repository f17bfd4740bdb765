"""Re-encodes an image at a smaller size, for data at rest."""

from __future__ import annotations

import io

import cv2
from PIL import Image

from pipeline.config.data import WHITE
from pipeline.images.decode import Data, decode_transparent, read_header
from pipeline.images.plain import load_plain


def shrink(data: Data, max_side: int, quality: int) -> tuple[str, bytes] | None:
    """Extension and bytes of the image with a longer side of `max_side`; None if it is no larger.

    The result is a JPEG of `quality`, or a PNG if any pixel is transparent, so that it stays so. Raises BadImage.
    """
    header = read_header(data)
    longer = max(header.height, header.width)
    if longer <= max_side:
        return None
    height, width = (max(round(side * max_side / longer), 1) for side in (header.height, header.width))
    if header.transparent and (image := decode_transparent(data)) is not None:
        return "png", transparent_png(image.resize((width, height), Image.Resampling.BILINEAR))
    pixels = load_plain(data, (height, width), 1 if header.mode == "L" else 3, WHITE)
    stored = pixels if pixels.shape[2] == 1 else cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    return "jpg", cv2.imencode(".jpg", stored, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def transparent_png(image: Image.Image) -> bytes:
    """An RGBA image as PNG, white where fully transparent: readers that drop alpha then show ink on paper."""
    ground = Image.new("RGBA", image.size, (*WHITE, 0))
    ground.paste(image, mask=image.getchannel("A").point(lambda alpha: 255 if alpha else 0))
    file = io.BytesIO()
    ground.save(file, "PNG")
    return file.getvalue()
