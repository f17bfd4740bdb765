"""Pictures that a stage saves for people: PNG files, each with a JSON file that describes it.

They are stored in `pictures/` of the stage's folder. The report and the tracker show whatever they find there.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

FOLDER = "pictures"


@dataclass(frozen=True)
class PictureRecord:
    """The content of a picture's JSON file. Pictures with the same title are shown together under it."""

    file: str
    title: str
    caption: str


def save_picture(folder: Path, name: str, image: np.ndarray | Image.Image, title: str, caption: str) -> Path:
    """Write `pictures/NAME.png` and `.json` below a stage's folder; pictures are shown in name order.

    `image` is uint8 [H, W], [H, W, 3] or [H, W, 4], or a PIL image. Characters of `name` that are unsuitable in a file
    name become dashes.
    """
    pictures = folder / FOLDER
    pictures.mkdir(parents=True, exist_ok=True)
    stem = re.sub(r"[^\w.-]+", "-", name).lstrip(".-")
    path = pictures / f"{stem}.png"
    drawn = image if isinstance(image, Image.Image) else Image.fromarray(image)
    drawn.save(path, optimize=True)
    path.with_suffix(".json").write_text(json.dumps(asdict(PictureRecord(path.name, title, caption)), indent=1) + "\n")
    return path


def read_pictures(folder: Path) -> list[tuple[Path, PictureRecord]]:
    """The pictures below a stage's folder in name order; skips those with truncated files."""
    found = []
    for path in sorted((folder / FOLDER).glob("*.json")):
        try:
            picture = PictureRecord(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            continue
        file = path.parent / Path(picture.file).name
        if file.is_file():
            found.append((file, picture))
    return found
