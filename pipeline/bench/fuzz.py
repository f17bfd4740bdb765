"""Random damage to tars and images: nothing may crash, hang, use unbounded memory, or raise unexpected errors."""

from __future__ import annotations

import contextlib
import io
import os
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from pipeline.bench.processes import peak_bytes
from pipeline.config.data import WHITE, AugmentConfig, RandAugmentConfig
from pipeline.images.decode import BadImage
from pipeline.shards.parallel import map_shards
from pipeline.shards.tar import TarStream, TornTar, members, read_sample
from pipeline.shards.write import tar_member
from pipeline.stream.augment import load_augmented
from pipeline.stream.draws import AUGMENT, SlotDraws

CHUNK = 500  # inputs per task, which then returns its findings
FORMATS = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp", "GIF": "gif", "TIFF": "tif", "BMP": "bmp"}
MODES = {
    "PNG": ["RGB", "L", "P", "RGBA", "LA", "I;16"],
    "JPEG": ["RGB", "L", "CMYK"],
    "WEBP": ["RGB", "L", "RGBA"],
    "GIF": ["P"],
}
SIZE = (24, 24)
CROP = AugmentConfig(rand_augment=RandAugmentConfig(), erase=0.2)


@dataclass
class FuzzFindings:
    """Outcomes of some inputs."""

    outcomes: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0
    peak_bytes: int = 0
    unexpected: list[str] = field(default_factory=list)


def measure(inputs: int, seed: int, workers: int | None = None) -> dict[str, Any]:
    """Outcomes of `inputs` damaged samples. Raises DataError if the system killed a process."""
    chunks = [(seed, first, min(first + CHUNK, inputs)) for first in range(0, inputs, CHUNK)]
    total = FuzzFindings()
    for found in map_shards(run_chunk, chunks, label="fuzzing", workers=workers, unit="chunks"):
        total.outcomes.update(found.outcomes)
        total.slowest_s = max(total.slowest_s, found.slowest_s)
        total.peak_bytes = max(total.peak_bytes, found.peak_bytes)
        total.unexpected += found.unexpected
    return {
        "inputs": sum(total.outcomes.values()),
        **dict(sorted(total.outcomes.items())),
        "slowest_s": total.slowest_s,
        "peak_megabytes": total.peak_bytes / 1e6,
        "unexpected": total.unexpected,
    }


def run_chunk(chunk: tuple[int, int, int]) -> FuzzFindings:
    seed, first, stop = chunk
    found, draws = FuzzFindings(), SlotDraws(seed, AUGMENT)
    with quiet():
        for number in range(first, stop):
            data = damaged_sample(np.random.default_rng([seed, number]))
            began = time.perf_counter()
            try:
                outcome = read(data, draws.at(number))
            except Exception:
                outcome = "unexpected"
                found.unexpected.append(f"input {number} of seed {seed}: {traceback.format_exc(limit=-3)}")
            found.slowest_s = max(found.slowest_s, time.perf_counter() - began)
            found.outcomes[outcome] += 1
    found.peak_bytes = peak_bytes()
    return found


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppresses what the image libraries print about damaged inputs."""
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def read(data: bytes, rng: np.random.Generator) -> str:
    """Process a sample's bytes as the loader does, and a tar's as the index does; returns the outcome."""
    try:
        for _ in members(TarStream(io.BytesIO(data)), needs_marker=False):
            pass
        _, parts = read_sample(data)
    except TornTar:
        return "torn"
    image = next((part for name, part in parts.items() if name != "cls"), None)
    if image is None:
        return "no image"
    try:
        pixels = load_augmented(image, SIZE, 3, WHITE, CROP, rng)
    except BadImage:
        return "bad image"
    assert pixels.shape == (*SIZE, 3)
    assert pixels.dtype == np.uint8
    return "decoded"


def damaged_sample(rng: np.random.Generator) -> bytes:
    """A sample in a random format, with bytes changed, removed, duplicated or truncated in its tar or its image."""
    format = str(rng.choice(list(FORMATS)))
    image = encode_image(format, rng)
    if rng.random() < 0.7:
        image = damage(image, rng)
    data = tar_member(f"s.{FORMATS[format]}", image) + tar_member("s.cls", b"3")
    return damage(data, rng) if rng.random() < 0.3 else data


def encode_image(format: str, rng: np.random.Generator) -> bytes:
    height, width = rng.integers(1, 80, size=2)
    smooth = Image.fromarray(rng.integers(256, size=(4, 4, 3), dtype=np.uint8)).resize((int(width), int(height)))
    mode = str(rng.choice(MODES.get(format, ["RGB", "L"])))
    picture = (
        Image.fromarray(np.asarray(smooth.convert("L"), np.uint16) * 200) if mode == "I;16" else smooth.convert(mode)
    )
    options: dict[str, Any] = {"progressive": bool(rng.random() < 0.3)} if format == "JPEG" else {}
    exif = Image.Exif()
    exif[0x0112] = int(rng.integers(0, 12))
    if format in ("JPEG", "PNG", "WEBP") and rng.random() < 0.5:
        options["exif"] = exif
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


def damage(data: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 6))):
        at = int(rng.integers(len(changed) + 1))
        length = int(rng.integers(1, 40))
        match int(rng.integers(6)):
            case 0 | 1 | 2:  # most formats keep their critical bytes at the beginning
                at = at if rng.random() < 0.5 else at % 64
                changed[at : at + 1] = bytes([int(rng.integers(256))])
            case 3:
                del changed[at : at + length]
            case 4:
                changed[at:at] = changed[at : at + length]
            case 5:
                del changed[max(at, 1) :]
    return bytes(changed)
