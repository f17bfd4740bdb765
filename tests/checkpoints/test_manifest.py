from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.checkpoints.manifest import NAME, payload_files, read_manifest, verify
from pipeline.errors import CheckpointError

Commit = Callable[..., Path]
shared_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)


def test_what_was_committed_is_read_back(tmp_path: Path, committed: Commit) -> None:
    folder = committed(tmp_path, 12)
    manifest = verify(folder)
    assert (manifest.step, manifest.slots, manifest.world_size, manifest.zero_stage) == (12, 96, 2, 2)
    assert [record.path for record in manifest.files] == sorted(["empty", "sub/ema.safetensors", *OPTIMIZER])
    assert manifest == read_manifest(folder)


OPTIMIZER = ["zero_pp_rank_0_optim_states.pt"]


@given(data=st.data())
@shared_folder
def test_any_flipped_bit_is_found(tmp_path: Path, committed: Commit, data: st.DataObject) -> None:
    folder = committed(tmp_path, 1)
    path = data.draw(st.sampled_from([path for path in payload_files(folder) if path.stat().st_size]))
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"does not have the SHA-256 its manifest says: its content was changed$"):
        verify(folder)


@given(data=st.data())
@shared_folder
def test_any_other_length_is_found(tmp_path: Path, committed: Commit, data: st.DataObject) -> None:
    folder = committed(tmp_path, 1)
    path = data.draw(st.sampled_from(payload_files(folder)))
    content = path.read_bytes()
    length = data.draw(st.integers(0, len(content) + 9).filter(lambda length: length != len(content)))
    path.write_bytes(content[:length].ljust(length, b"+"))
    with pytest.raises(CheckpointError, match=rf"has {length} bytes, the manifest says {len(content)}$"):
        verify(folder)


@pytest.mark.parametrize("name", ["empty", "sub/ema.safetensors", *OPTIMIZER])
def test_a_missing_file_is_found(tmp_path: Path, committed: Commit, name: str) -> None:
    folder = committed(tmp_path, 1)
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=rf"{name} is missing, the manifest says \d+"):
        verify(folder)


def test_a_folder_in_a_files_place_is_found(tmp_path: Path, committed: Commit) -> None:
    folder = committed(tmp_path, 1)
    (folder / "empty").unlink()
    (folder / "empty").mkdir()
    with pytest.raises(CheckpointError, match="empty is missing"):
        verify(folder)


def test_without_a_manifest_there_is_no_checkpoint(tmp_path: Path, committed: Commit) -> None:
    folder = committed(tmp_path, 1)
    (folder / NAME).rename(folder / (NAME + ".tmp"))  # killed just before the commit
    with pytest.raises(CheckpointError, match=r"has no manifest\.json: it was never committed$"):
        verify(folder)


@given(data=st.data())
@shared_folder
def test_a_torn_manifest_is_refused(tmp_path: Path, committed: Commit, data: st.DataObject) -> None:
    path = committed(tmp_path, 1) / NAME
    text = path.read_text()
    path.write_text(text[: data.draw(st.integers(0, len(text) - 1))])
    with pytest.raises(CheckpointError, match=r"manifest\.json cannot be read"):
        verify(path.parent)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, r"has format 2, this version reads 1; use the version that wrote it$"),
        ({"colour": "red"}, "lacks or has unknown fields: .*colour"),
    ],
)
def test_a_manifest_of_another_version_is_refused(
    tmp_path: Path, committed: Commit, change: dict[str, object], message: str
) -> None:
    path = committed(tmp_path, 1) / NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=message):
        read_manifest(path.parent)


@pytest.mark.parametrize("key", ["step", "files", "digest"])
def test_a_manifest_that_lacks_a_field_is_refused(tmp_path: Path, committed: Commit, key: str) -> None:
    path = committed(tmp_path, 1) / NAME
    path.write_text(json.dumps({name: value for name, value in json.loads(path.read_text()).items() if name != key}))
    with pytest.raises(CheckpointError, match=f"lacks or has unknown fields: .*{key}"):
        read_manifest(path.parent)


@pytest.mark.parametrize("content", ["[]", "3", '"text"', "null"])
def test_a_manifest_that_is_no_object_is_refused(tmp_path: Path, committed: Commit, content: str) -> None:
    path = committed(tmp_path, 1) / NAME
    path.write_text(content)
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        read_manifest(path.parent)


def test_a_moved_checkpoint_is_still_one(tmp_path: Path, committed: Commit) -> None:
    folder = committed(tmp_path / "here", 1)
    moved = shutil.move(folder, tmp_path / "there")
    assert verify(Path(moved)).step == 1
