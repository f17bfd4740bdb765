from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.config.load import parse_config
from pipeline.stages.storages import check_storages


def test_the_write_that_tries_a_storage_leaves_nothing_in_it(
    raw: dict[str, Any], s3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (s3 / "tried").mkdir()
    for stage, place in (("larger", "s3://tried/checkpoints"), ("finer", "kept")):
        raw["stages"][stage]["checkpoint"] = {"storage": place}
    check_storages(parse_config(raw, "c"))
    assert not [path for place in (s3 / "tried", Path("kept")) for path in place.rglob("*") if path.is_file()]
