"""Where Fashion-MNIST's four files come from, and how to read them (idx: a big-endian header, then raw bytes)."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.client
import shutil
import struct
import subprocess
import urllib.request
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np

from pipeline.errors import DataError

IdxFolder = Annotated[
    Path | None, "folder with Fashion-MNIST's four idx files; default: Debian's package, else the public copy"
]
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
DEBIAN_PACKAGE = "dataset-fashion-mnist"
PUBLIC_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
TIMEOUT_S = 60
UINT8 = 8  # idx code of the element type
MOST_BYTES = 1 << 30
FILE_PREFIX = {"train": "train", "test": "t10k"}
# SHA-256 of the unpacked files: archives of the same data differ in their gzip headers.
SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


@dataclass(frozen=True)
class Split:
    images: np.ndarray  # uint8 [N, H, W]
    labels: np.ndarray  # uint8 [N]


@contextlib.contextmanager
def located(src: Path | None) -> Iterator[Path]:
    """Yields a folder with the four files: `src`, Debian's, or a temporary one. Raises DataError if unavailable."""
    if src is not None:
        if not _complete(src):
            names = ", ".join(f"{name}[.gz]" for name in SHA256)
            raise DataError(f"{src}: found no Fashion-MNIST files; --src must be a folder with {names}")
        yield src
        return
    if _complete(DEBIAN_FOLDER):
        yield DEBIAN_FOLDER
        return
    with TemporaryDirectory(prefix="fashion-mnist-") as temporary:
        yield _obtain(Path(temporary))


def read_split(folder: Path, split: str) -> Split:
    """Images and labels of "train" or "test" from a folder of idx files, gzipped or not. Raises DataError."""
    prefix = FILE_PREFIX[split]
    return Split(
        read_idx(_file(folder, f"{prefix}-images-idx3-ubyte")), read_idx(_file(folder, f"{prefix}-labels-idx1-ubyte"))
    )


def read_idx(path: Path) -> np.ndarray:
    """A uint8 array of any rank from an idx file, which may be gzipped. Raises DataError if it is not one."""
    try:
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rb") as file:
            zeros, kind, rank = struct.unpack(">HBB", file.read(4))
            if zeros != 0 or kind != UINT8:
                raise ValueError("its first bytes are not those of an idx file of unsigned bytes")
            shape = struct.unpack(f">{rank}I", file.read(4 * rank))
            size = int(np.prod(shape, dtype=np.uint64))
            if size > MOST_BYTES:
                raise ValueError(f"it claims {size:,} bytes")
            data = file.read(size)
            if len(data) < size:
                raise ValueError(f"{len(data):,} of {size:,} bytes are present")
    except (OSError, EOFError, zlib.error, struct.error, ValueError) as error:
        raise DataError(f"{path}: cannot be read as an idx file ({error}); download it again") from None
    return np.frombuffer(data, np.uint8).reshape(shape)


def unpack_debian_package(folder: Path) -> Path:
    """Downloads and unpacks Debian's package, without root privileges. Raises Unavailable."""
    try:
        _call(["apt-get", "download", DEBIAN_PACKAGE], folder)
    except Unavailable:
        # A container or a new machine has no package lists, and only root may fetch the system's: fetch our own.
        (folder / "lists" / "partial").mkdir(parents=True)
        settings = {"Dir::State::Lists": folder / "lists", "Dir::Cache": folder / "cache", "Acquire::Languages": "none"}
        (folder / "apt.conf").write_text("".join(f'{key} "{value}";\n' for key, value in settings.items()))
        _call(["apt-get", "-c", "apt.conf", "update"], folder)
        _call(["apt-get", "-c", "apt.conf", "download", DEBIAN_PACKAGE], folder)
    for package in folder.glob(f"{DEBIAN_PACKAGE}_*.deb"):
        _call(["dpkg", "-x", package.name, "unpacked"], folder)
    unpacked = folder / "unpacked" / DEBIAN_FOLDER.relative_to("/")
    if not _complete(unpacked):
        raise Unavailable(f"Debian's {DEBIAN_PACKAGE} no longer has the files at {DEBIAN_FOLDER}")
    return unpacked


def _call(command: list[str], folder: Path) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=10 * TIMEOUT_S)
    except FileNotFoundError:
        raise Unavailable(f"{command[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise Unavailable(f"`{' '.join(command)}` did not finish within {10 * TIMEOUT_S} s") from None
    except subprocess.CalledProcessError as error:
        said = [line for line in error.stderr.splitlines() if not line.startswith("W:")] or ["no reason given"]
        raise Unavailable(f"`{' '.join(command)}` failed ({said[-1]})") from None


def download(folder: Path, url: str = PUBLIC_URL) -> Path:
    """Fetches the four files by HTTP and compares their content with known hashes. Raises Unavailable."""
    for name, expected in SHA256.items():
        packed = folder / f"{name}.gz"
        source = f"{url}/{packed.name}"
        try:
            with urllib.request.urlopen(source, timeout=TIMEOUT_S) as response, open(packed, "wb") as file:
                shutil.copyfileobj(response, file)
            with gzip.open(packed) as content:
                found = hashlib.file_digest(content, "sha256").hexdigest()
        except (OSError, EOFError, zlib.error, http.client.HTTPException) as error:
            raise Unavailable(f"{source} cannot be downloaded ({error})") from None
        if found != expected:
            raise Unavailable(f"{source} is not Fashion-MNIST (SHA-256 {found[:12]}..)")
    return folder


class Unavailable(Exception):
    """A source of the files is unavailable; the message says why."""


def _obtain(temporary: Path) -> Path:
    failures = []
    for way in (unpack_debian_package, download):
        try:
            return way(temporary)
        except Unavailable as failure:
            failures.append(str(failure))
    raise DataError(
        f"Fashion-MNIST is unavailable: {DEBIAN_FOLDER} does not exist; {'; '.join(failures)}; as root run `apt-get "
        f"install {DEBIAN_PACKAGE}`, or give a folder with its four idx files with --src"
    )


def _complete(folder: Path) -> bool:
    return all(_file(folder, name).is_file() for name in SHA256)


def _file(folder: Path, name: str) -> Path:
    packed = folder / f"{name}.gz"
    return packed if packed.is_file() else folder / name
