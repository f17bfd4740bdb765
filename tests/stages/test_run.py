from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.load import parse_config
from pipeline.config.schema import PipelineConfig
from pipeline.errors import CheckpointError
from pipeline.stages.folder import FINISHED, RunFolder, Status
from pipeline.stages.run import STAGE_RUNS, differences, require_same_pipeline

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("abc"), inner, max_size=2),
    max_leaves=5,
)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "quick")


@given(value=PLAIN)
def test_equal_values_do_not_differ(value: Any) -> None:
    assert differences(value, value) == []


@given(before=PLAIN, after=PLAIN)
def test_unequal_values_differ_somewhere(before: Any, after: Any) -> None:
    before, after = {"a": before, "b": 1}, {"a": after, "b": 1}
    found = differences(before, after)
    assert all(path.startswith("a") for path in found)
    if before == after:
        assert found == []
    elif not isinstance(before["a"], dict) or not isinstance(after["a"], dict):
        assert len(found) == 1


def test_differences_name_the_path_and_short_values() -> None:
    before = {"settings": {"optimizer": {"lr": 0.1, "betas": [0.9, 0.99]}, "ema": None}, "seed": 0}
    after = {"settings": {"optimizer": {"lr": 0.2, "betas": [0.9, 0.99]}, "ema": 0.9}, "seed": 0}
    assert differences(before, after) == ["settings.optimizer.lr (0.1 to 0.2)", "settings.ema (None to 0.9)"]


def test_differences_leave_out_long_values() -> None:
    assert differences({"classes": ["a" * 70]}, {"classes": ["b"]}) == ["classes"]


def test_keys_that_come_and_go_are_named() -> None:
    assert differences({"a": 1}, {"b": 2}) == ["a (1 to None)", "b (None to 2)"]


def test_a_folder_of_this_pipeline_is_accepted(config: PipelineConfig, folder: RunFolder) -> None:
    require_same_pipeline(config, folder)
    folder.stage("pretrain/nano").write_status(Status(FINISHED, "pretrain", "d", {}))
    folder.stage("pretrain/nano").set_aside()
    folder.stage("larger").write_status(Status(FINISHED, "finetune", "d", {}))
    require_same_pipeline(config, folder)


@pytest.mark.parametrize(("stage_id", "kind"), [("pretrain/tiny", "pretrain"), ("larger", "pretrain"), ("x", "report")])
def test_a_folder_of_another_pipeline_is_refused(
    config: PipelineConfig, folder: RunFolder, stage_id: str, kind: str
) -> None:
    folder.stage(stage_id).write_status(Status(FINISHED, kind, "d", {}))
    with pytest.raises(
        CheckpointError, match=rf"quick belongs to another config: it holds the {kind} stage '{stage_id}'"
    ):
        require_same_pipeline(config, folder)


def test_every_type_of_stage_can_be_run(raw: dict[str, Any]) -> None:
    config = parse_config(raw, "c")
    assert {type(stage) for stage in config.stages.values()} == set(STAGE_RUNS)
