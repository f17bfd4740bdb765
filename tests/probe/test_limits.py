from __future__ import annotations

from typing import Any

import pytest

from pipeline.config.probe import KnnConfig, RetrievalConfig
from pipeline.errors import ConfigError
from pipeline.probe.limits import check_recall, neighbours


@pytest.mark.parametrize(
    ("k", "samples", "expected"),
    [
        (401, 400, "methods.knn.k: found 401, but the training data have 400 good samples; use at most 400"),
        ([5, 361], 400, "have 400 good samples, and 40 of them are held out to choose k on; use at most 360"),
    ],
)
def test_more_neighbours_than_there_are(k: Any, samples: int, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        neighbours(KnnConfig(k=k), samples, "methods.knn")
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("samples", "expected"), [(60_000, [5, 10, 20, 50, 100, 200]), (100, [5, 10, 20, 50]), (3, [1])]
)
def test_by_default_what_the_data_can_give(samples: int, expected: list[int]) -> None:
    assert neighbours(KnnConfig(), samples, "") == expected


def test_a_gallery_smaller_than_k() -> None:
    with pytest.raises(ConfigError, match=r"methods\.retrieval\.at: found 10, but the test data have 10 good samples"):
        check_recall(RetrievalConfig(), 10, "methods.retrieval")
