from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

Samples = list[tuple[str, dict[str, bytes]]]


def _write_tar(path: Path, samples: Samples) -> Path:
    with tarfile.open(path, "w") as tar:
        for key, members in samples:
            for extension, data in members.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def _samples(count: int, first: int = 0) -> Samples:
    return [
        (f"s{i:04d}", {"png": bytes([i % 256]) * (i * 37 % 1200 + 1), "note": b"", "cls": str(i % 10).encode()})
        for i in range(first, first + count)
    ]


@pytest.fixture(scope="session")
def write_tar() -> Callable[[Path, Samples], Path]:
    """Write samples as Python's own tarfile library does."""
    return _write_tar


@pytest.fixture(scope="session")
def samples() -> Callable[..., Samples]:
    """`samples(count, first=0)`: keys, images of varied size, an empty text, labels 0 to 9."""
    return _samples


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three tars of 5, 0 and 3 samples, without an index."""
    for number, (count, first) in enumerate([(5, 0), (0, 0), (3, 5)]):
        _write_tar(tmp_path / f"train-{number:06d}.tar", _samples(count, first))
    return tmp_path
