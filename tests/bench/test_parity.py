from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.bench.parity import mean_and_deviation, only, peer_job
from pipeline.bench.parity_peer import train_peer
from pipeline.bench.synthetic import SIDE, write_shards
from pipeline.config.load import parse_config
from pipeline.config.schema import PipelineConfig
from pipeline.errors import ConfigError

STAGE = "pretrain"


@pytest.fixture
def raw(tmp_path: Path) -> dict[str, Any]:
    write_shards(tmp_path / "shards")
    splits = ("train", "test")
    datasets = {name: {"shards": f"{tmp_path}/shards/{name}-*.tar", "mean": [0.4], "std": [0.3]} for name in splits}
    stage = {
        "type": "pretrain",
        "model": {"variant": ["micro"], "depth": 2, "image_size": SIDE, "patch_size": 4, "channels": 1},
        "data": {"train": "train", "lanes": 8, "window": 8, "loader_workers": 0, "augment": {"crop": "padded"}},
        "duration": "1 epochs",
        "global_batch_size": 32,
        "optimizer": {"lr": 3e-3},
        "schedule": {"warmup": "5 steps"},
        "ema": 0.9,
    }
    export = {"type": "export", "model": STAGE}
    return {"name": "p", "datasets": datasets, "stages": {STAGE: stage, "export": export}}


def chosen(raw: dict[str, Any], **changes: Any) -> PipelineConfig:
    raw["stages"][STAGE] |= changes
    return only(parse_config(raw, "p"), STAGE, test="test", variant="nano", epochs=20, seed=3)


def test_the_pipeline_is_one_stage_and_its_evaluation(raw: dict[str, Any]) -> None:
    config = chosen(raw)
    assert list(config.stages) == [STAGE, "evaluate"]
    assert config.seed == 3
    assert config.stages[STAGE].model.variants == ["nano"]
    assert str(config.stages[STAGE].duration) == "20 epochs"


def test_the_plain_loop_learns_by_the_same_recipe(raw: dict[str, Any]) -> None:
    job = peer_job(chosen(raw), STAGE, "test", threads=1)
    assert (job.total_steps, job.warmup_steps) == (20 * 96 // 32, 5)
    assert train_peer(job) > 0.6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": {"name": "sgd"}}, r"optimizer\.name: found 'sgd', .* set it to adamw"),
        ({"optimizer": {"layer_decay": 0.8}}, r"optimizer\.layer_decay: found 0\.8, .* set it to null"),
        ({"task": {"type": "mae"}}, "expected a stage that trains a classifier from scratch"),
    ],
)
def test_other_recipes_are_refused(raw: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        chosen(raw, **changes)


def test_deviations_are_those_of_a_sample() -> None:
    assert mean_and_deviation([0.5, 0.7]) == {"mean": 0.6, "deviation": pytest.approx(0.02**0.5), "seeds": [0.5, 0.7]}
    assert mean_and_deviation([0.5])["deviation"] == 0
