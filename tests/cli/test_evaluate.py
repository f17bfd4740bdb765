from __future__ import annotations

import click
import pytest

from pipeline.cli.evaluate import chosen_methods, measures_table, variables
from pipeline.config.probe import KnnConfig, RetrievalConfig
from pipeline.errors import ConfigError
from pipeline.metrics.schema import LOSS, Measure, Schema


def test_one_row_per_model_and_what_was_left_out() -> None:
    figures = {"accuracy": 0.5, "top5": 0.875, "loss": 1.25, "samples": 1234, "bad_samples": 2}
    rows = measures_table({"models": {"runs/a": figures, "b": figures}, "bad_samples": {"bad": 2}}).splitlines()
    assert [row.split() for row in rows] == [
        ["model", "accuracy", "loss", "top-5", "accuracy", "samples"],
        ["runs/a", "50.00", "%", "1.25", "87.50", "%", "1,234"],
        ["b", "50.00", "%", "1.25", "87.50", "%", "1,234"],
        ["left", "out:", "2", "bad", "samples"],
    ]
    assert len({len(row) for row in rows[:3]}) == 1


def test_the_columns_are_what_the_task_measures() -> None:
    schema = Schema((LOSS, Measure("miou", "Mean IoU", "higher", share=True)), selects="miou")
    models = {"a": {"loss": 0.5, "miou": 0.25, "samples": 3}, "b": {"loss": 0.5, "samples": 3}}
    rows = measures_table({"schema": schema.to_dict(), "models": models, "bad_samples": {"bad": 0}}).splitlines()
    assert [row.split() for row in rows] == [
        ["model", "mean", "IoU", "loss", "samples"],
        ["a", "25.00", "%", "0.5", "3"],
        ["b", "0.5", "3"],
    ]


def test_frozen_features_with_how_sure_the_figures_are() -> None:
    assert chosen_methods("retrieval", None, None).retrieval == RetrievalConfig()
    methods = chosen_methods("knn, retrieval", "shards", None)
    assert (methods.knn, methods.linear) == (KnnConfig(), None)
    schema = Schema((Measure("knn", "kNN accuracy", "higher", share=True),), selects="knn")
    models = {"a": {"knn": 0.8, "intervals": {"knn": [0.775, 0.821]}, "samples": 3}}
    bad = {"train": {"bad": 1}, "test": {"bad": 2}}
    rows = measures_table({"schema": schema.to_dict(), "models": models, "bad_samples": bad}).splitlines()
    assert rows[1:] == [
        "a           80.00 %        3",
        "95 % confidence intervals of shares: at most ±2.30 points",
        "left out: 3 bad samples",
    ]


@pytest.mark.parametrize(
    ("names", "train", "task", "expected"),
    [
        ("knn", None, None, "--probe: knn and linear need --train SHARDS"),
        ("knn", "shards", "{}", "--task: does not apply with --probe"),
        ("knn,lniear", "shards", None, "found 'lniear', did you mean 'linear'?"),
    ],
)
def test_what_a_probe_refuses(names: str, train: str | None, task: str | None, expected: str) -> None:
    with pytest.raises(click.UsageError) as caught:
        chosen_methods(names, train, task)
    assert expected in str(caught.value)


def test_variables_for_the_ranks_are_named_and_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEAM_TOKEN", "secret")
    assert variables(["TEAM_TOKEN"]) == ["TEAM_TOKEN"]
    with pytest.raises(click.UsageError, match="--env: found 'A=1', expected the name of a variable"):
        variables(["A=1"])
    with pytest.raises(ConfigError, match=r"^--env: NOT_SET_ANYWHERE is not set where you started the run"):
        variables(["TEAM_TOKEN", "NOT_SET_ANYWHERE"])
