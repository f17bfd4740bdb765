from __future__ import annotations

import copy
from typing import Any

import pytest

from pipeline.config.overrides import apply_overrides
from pipeline.errors import ConfigError


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("seed=7", "seed", 7),
        ("stages.pretrain.duration=5 steps", "stages.pretrain.duration", "5 steps"),
        ("stages.finetune.optimizer.lr=1e-4", "stages.finetune.optimizer.lr", 1e-4),
        ("stages.pretrain.optimizer.lr=1e-4", "stages.pretrain.optimizer.lr", 1e-4),
        ("stages.pretrain.data.augment.rand_augment.ops=3", "stages.pretrain.data.augment.rand_augment.ops", 3),
        ("stages.pretrain.model.variant=[nano, tiny]", "stages.pretrain.model.variant", ["nano", "tiny"]),
        ("stages.evaluate.models=[./a]", "stages.evaluate.models", ["./a"]),
        ("datasets.train.shards=a={0..3}=b.tar", "datasets.train.shards", "a={0..3}=b.tar"),
        ("tracking.uri=http://127.0.0.1:5000", "tracking.uri", "http://127.0.0.1:5000"),
        ("tracking.uri=", "tracking.uri", None),
        ("cluster.workers = 2", "cluster.workers", 2),
        ("cluster={workers: 2}", "cluster", {"workers": 2}),
    ],
)
def test_sets_a_value(raw: dict[str, Any], override: str, path: str, value: Any) -> None:
    before = copy.deepcopy(raw)
    section: Any = apply_overrides(raw, [override])
    for key in path.split("."):
        section = section[key]
    assert section == value
    assert raw == before


def test_later_ones_win(raw: dict[str, Any]) -> None:
    assert apply_overrides(raw, ["seed=1", "seed=2"])["seed"] == 2


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("stages.pretrian.duration=1 steps", "no setting stages.pretrian; did you mean 'stages.pretrain.duration'?"),
        (
            "stages.pretrain.optimiser.lr=1",
            "no setting stages.pretrain.optimiser; did you mean 'stages.pretrain.optimizer.lr'?",
        ),
        ("lr=1", "no setting lr; did you mean 'stages.pretrain.optimizer.lr' or 'stages.finetune.optimizer.lr'?"),
        ("optimizer.lr=1", "no setting optimizer.lr; did you mean 'stages.pretrain.optimizer.lr' or "),
        ("qqq=1", "no setting qqq; the file has name, seed, "),
        ("datasets.mnist.shards=x", "no setting datasets.mnist; datasets has train, test."),
        ("stages.pretrain.model.zzz=x", "no setting stages.pretrain.model.zzz; stages.pretrain.model has variant, "),
        ("stages.report.duration=1 steps", "no setting stages.report.duration; stages.report has resources, type."),
        ("seed.x=1", "seed has no keys; set it as a whole."),
        ("stages.pretrain.duration.value=1", "stages.pretrain.duration has no keys; "),
        (
            "stages.pretrain.model.variant.0=a",
            "stages.pretrain.model.variant has no keys; ",
        ),
        ("nonsense", "expected key=value, such as stages.pretrain.duration='10 epochs'."),
        ("=3", "expected key=value"),
    ],
)
def test_refuses(raw: dict[str, Any], override: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        apply_overrides(raw, [override])
    assert str(caught.value).startswith(f"override '{override}': {sentence}")
    assert "\n" not in str(caught.value)


def test_a_value_that_is_not_yaml_names_the_override(raw: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"^override 'seed=\[1':1:3: not valid YAML, "):
        apply_overrides(raw, ["seed=[1"])


def test_every_fault_has_its_line(raw: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        apply_overrides(raw, ["seeed=1", "name=ok", "clustr.workers=1"])
    assert [line.split("'")[1] for line in str(caught.value).splitlines()] == ["seeed=1", "clustr.workers=1"]
