from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.checkpoints.manifest import Manifest, payload_files, record_file, write_manifest
from pipeline.checkpoints.store import step_folder

FILES = {"zero_pp_rank_0_optim_states.pt": b"optimiser" * 40, "sub/ema.safetensors": b"average", "empty": b""}


def commit(root: Path, step: int, digest: str = "d") -> Path:
    """A committed checkpoint of a few small files."""
    folder = step_folder(root, step)
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    files = [record_file(folder, path) for path in payload_files(folder)]
    write_manifest(folder, Manifest(step, step * 8, 2, 2, digest, {"variant": "nano"}, files, {"val/accuracy": 0.5}))
    return folder


@pytest.fixture
def committed() -> Callable[..., Path]:
    return commit
