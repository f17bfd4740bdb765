from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.stages.bad_sample_report import manifests, report_bad_samples
from pipeline.stages.folder import StageFolder


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def context(said: list[str]) -> SimpleNamespace:
    return SimpleNamespace(say=lambda stage, message: said.append(f"{stage}: {message}"))


INDEXES = [SimpleNamespace(num_samples=150), SimpleNamespace(num_samples=250)]


def note(file: Path, *samples: int) -> None:
    lines = [{"dataset": "t", "shard": "a.tar", "index": i, "key": f"s{i}", "reason": "torn"} for i in samples]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_what_is_left_out_is_said_in_one_line_and_kept(
    tmp_path: Path, context: SimpleNamespace, said: list[str]
) -> None:
    note(tmp_path / "quarantine.rank0-worker0.jsonl", 3, 8)
    note(tmp_path / "quarantine.rank1-worker0.jsonl", 8, 9)  # met again after a restart on other ranks
    manifest = tmp_path / "quarantine.jsonl"
    result = report_bad_samples(context, "pretrain", "train", manifest, INDEXES, "exclude them")
    message = (
        "train: 3 of 400 samples are bad and were left out: torn (3, such as a.tar/s3); "
        f"{tmp_path}/quarantine.*.jsonl lists them; exclude them"
    )
    assert said == [f"pretrain: {message}"]
    assert result == {
        "bad": 3,
        "samples": 400,
        "reasons": [{"reason": "torn", "count": 3, "first": "a.tar/s3"}],
    }
    [event] = (StageFolder(tmp_path).path / "events.jsonl").read_text().splitlines()
    assert json.loads(event).items() >= {"event": "bad_samples", "message": message, "bad": 3, "samples": 400}.items()


def test_of_good_data_nothing_is_said(tmp_path: Path, context: SimpleNamespace, said: list[str]) -> None:
    result = report_bad_samples(context, "pretrain", "val", tmp_path / "quarantine-val.jsonl", INDEXES, "consequence")
    assert (result, said) == ({"bad": 0, "samples": 400, "reasons": []}, [])
    assert not (tmp_path / "events.jsonl").exists()


def test_each_manifest_has_its_own_files(tmp_path: Path) -> None:
    names = "quarantine.rank0-worker0.jsonl", "quarantine-val.rank0-worker0.jsonl"
    for name in names:
        note(tmp_path / name, 1)
    for manifest, name in zip(("quarantine.jsonl", "quarantine-val.jsonl"), names, strict=True):
        assert manifests(tmp_path, manifest) == [(tmp_path / name, "quarantine")]
