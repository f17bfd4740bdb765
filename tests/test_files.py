from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pipeline.files import write_json, write_whole


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "value.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert os.listdir(path.parent) == ["value.json"]


def test_the_file_is_durable_before_it_takes_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[str, bool]] = []
    path = tmp_path / "file.txt"
    monkeypatch.setattr("pipeline.files.sync", lambda place: synced.append((place.name, path.exists())))
    write_whole(path, lambda draft: draft.write_text("x"))
    (draft, there_before), (folder, there_after) = synced
    assert draft.endswith("-file.txt")
    assert (there_before, folder, there_after) == (False, tmp_path.name, True)
