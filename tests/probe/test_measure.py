from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config.probe import KnnConfig, LinearConfig, MethodsConfig, RetrievalConfig
from pipeline.errors import DataError, ModelError
from pipeline.probe.measure import Measurement, schema_of_methods
from pipeline.probe.rows import Rows

pytestmark = pytest.mark.usefixtures("one_rank")

ALL = MethodsConfig(knn=KnnConfig(), linear=LinearConfig(l2=[1e-3, 1e-1]), retrieval=RetrievalConfig(at=[1, 5]))


def measurement(train: Rows, test: Rows) -> Measurement:
    return Measurement(train, test, 4, where="methods", tell=lambda words: None)


def test_every_method_has_its_measures_and_intervals(train: Rows, test: Rows) -> None:
    measured = measurement(train, test).measure_collective(ALL)
    assert (
        tuple(measured.measures)
        == schema_of_methods(ALL).names
        == ("knn", "linear", "recall_at_1", "recall_at_5", "map")
    )
    assert measured.intervals.keys() == measured.measures.keys()
    for name, (low, high) in measured.intervals.items():
        assert low < measured.measures[name] < high
    assert measured.measures["linear"] > 0.5
    assert measured.chosen.keys() == {"k", "l2", "queries"}


def test_k_is_chosen_without_a_look_at_the_test(train: Rows, test: Rows) -> None:
    wrong = Rows(test.features, (test.labels + 1) % 4)
    chosen = [measurement(train, rows).measure_collective(ALL).chosen for rows in (test, wrong)]
    assert chosen[0] == chosen[1]


def test_a_single_k_and_l2_are_taken_as_they_are(train: Rows, test: Rows) -> None:
    methods = MethodsConfig(knn=KnnConfig(k=400), linear=LinearConfig(l2=[0.5]))
    assert measurement(train, test).measure_collective(methods).chosen == {"k": 400, "l2": 0.5}


def test_a_linear_probe_by_sgd_chooses_its_learning_rate(train: Rows, test: Rows) -> None:
    by_sgd = LinearConfig(optimizer="sgd", learning_rates=[1e-5, 0.1], epochs=20, batch_size=64)
    measured = measurement(train, test).measure_collective(MethodsConfig(linear=by_sgd))
    assert measured.chosen == {"learning_rate": 0.1}
    assert measured.measures["linear"] > 0.5


def test_no_good_sample(train: Rows, test: Rows) -> None:
    with pytest.raises(DataError, match="all test samples are bad"):
        measurement(train, test.where(torch.zeros(len(test.labels), dtype=torch.bool)))


def test_features_that_are_no_numbers(train: Rows, test: Rows) -> None:
    train.features[3, 1] = torch.nan
    with pytest.raises(ModelError, match="the features of 1 of 550 images are not finite"):
        measurement(train, test)


def test_any_number_of_ranks_measures_the_same(run_ranks: Any, program: Any, tmp_path: Path) -> None:
    alone = program.probe()
    assert len(alone["chosen"]) == 4
    for rank in run_ranks(2, tmp_path / "two", {"probe": ["probe", []]}):
        assert rank["probe"]["chosen"] == alone["chosen"]
        assert rank["probe"]["measures"] == pytest.approx(alone["measures"], abs=1e-12)
