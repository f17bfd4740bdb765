from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.checkpoints.manifest import FORMAT, NAME, NewerFormat, commit_manifest, read_manifest, verify_checkpoint
from pipeline.checkpoints.storage import LocalStorage
from pipeline.errors import CheckpointError
from pipeline.files import hash_file

Commit = Callable[..., str]


def change(storage: LocalStorage, folder: str, **fields: Any) -> None:
    path = storage.path / folder / NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_what_is_written_is_read(storage: LocalStorage, committed: Commit) -> None:
    folder = committed(storage, 3, metrics={"val/loss": 0.1})
    manifest = verify_checkpoint(storage, folder)
    assert (manifest.step, manifest.slots, manifest.metrics) == (3, 24, {"val/loss": 0.1})
    assert manifest.window.sums == [[1.0], [2.0]]
    assert manifest.bytes == sum(storage.files(folder)[f"{folder}/rank-{rank}.safetensors"] for rank in (0, 1))
    for record in manifest.files:
        assert record.sha256 == hash_file(storage.path / folder / record.name)
    commit_manifest(storage, folder, replace(manifest, step=4))
    assert read_manifest(storage, folder).step == 4


def test_no_manifest_no_checkpoint(storage: LocalStorage, committed: Commit) -> None:
    folder = committed(storage, 3)
    (storage.path / folder / NAME).unlink()
    with pytest.raises(CheckpointError, match=r"step-00000003 has no manifest\.json: it was never committed$"):
        verify_checkpoint(storage, folder)


@pytest.mark.parametrize("content", ["{", "[]", "", '{"format": 2}'])
def test_a_damaged_manifest_is_one_sentence(storage: LocalStorage, committed: Commit, content: str) -> None:
    folder = committed(storage, 3)
    (storage.path / folder / NAME).write_text(content)
    with pytest.raises(CheckpointError, match=r"manifest\.json (cannot be read|has missing or unknown fields)"):
        read_manifest(storage, folder)


def test_a_later_version_is_told_apart(storage: LocalStorage, committed: Commit) -> None:
    folder = committed(storage, 3)
    change(storage, folder, format=FORMAT + 1)
    with pytest.raises(
        NewerFormat,
        match=rf"has format {FORMAT + 1}, but this version reads format {FORMAT}; resume with the later version",
    ):
        read_manifest(storage, folder)
    change(storage, folder, format=FORMAT - 1)
    with pytest.raises(CheckpointError, match="use the version that wrote it") as caught:
        read_manifest(storage, folder)
    assert not isinstance(caught.value, NewerFormat)


def test_one_changed_byte_is_seen(storage: LocalStorage, committed: Commit) -> None:
    path = storage.path / committed(storage, 3) / "rank-1.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"rank-1\.safetensors does not match the SHA-256 in its manifest"):
        verify_checkpoint(storage, "step-00000003")


@pytest.mark.parametrize(
    ("spoil", "found"), [(Path.unlink, "is missing"), (lambda path: path.write_bytes(b""), "has 0")]
)
def test_a_missing_or_short_file_is_named(
    storage: LocalStorage, committed: Commit, spoil: Callable[[Path], object], found: str
) -> None:
    spoil(storage.path / committed(storage, 3) / "rank-0.safetensors")
    with pytest.raises(CheckpointError, match=rf"rank-0\.safetensors {found}.*, but the manifest says \d+$"):
        verify_checkpoint(storage, "step-00000003")
