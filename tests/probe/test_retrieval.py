from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score

from pipeline.probe.retrieval import retrieve
from pipeline.probe.rows import Rows

pytestmark = pytest.mark.usefixtures("one_rank")


def test_as_scikit_learn_and_loops_find_it(test: Rows) -> None:
    unit = F.normalize(test.features.double(), dim=1)
    cosines = (unit @ unit.T).numpy()
    precisions, hits = [], {1: 0, 5: 0}
    for query in range(len(cosines)):
        others = np.delete(np.arange(len(cosines)), query)
        relevant = test.labels.numpy()[others] == test.labels.numpy()[query]
        precisions.append(average_precision_score(relevant, cosines[query, others]))
        order = relevant[np.argsort(-cosines[query, others], kind="stable")]
        for k in hits:
            hits[k] += bool(order[:k].any())
    found = retrieve(test, [1, 5])
    assert found.queries == len(test.labels)
    assert found.hits == hits
    assert found.precisions.tolist() == pytest.approx(precisions, abs=1e-9)
    assert found.mean_average_precision == pytest.approx(np.mean(precisions), abs=1e-9)


def test_blocks_of_queries_change_nothing(test: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = retrieve(test, [3])
    monkeypatch.setattr("pipeline.probe.retrieval.CELLS_AT_ONCE", 1000)
    assert retrieve(test, [3]).hits == whole.hits


def test_a_sample_alone_in_its_class_asks_for_nothing() -> None:
    features = torch.eye(3)[[0, 0, 1]]
    found = retrieve(Rows(features, torch.tensor([5, 5, 6])), [1])
    assert (found.queries, found.hits, found.mean_average_precision) == (2, {1: 2}, 1.0)


def test_equal_samples_come_in_the_order_of_the_data() -> None:
    found = retrieve(Rows(torch.ones(4, 2), torch.tensor([0, 1, 1, 0])), [1])
    # The first asks: 1, 1, 0 -> 1/3; the second 0, 1, 0 -> 1/2; the third 0, 1, 0 -> 1/2; the fourth 0, 1, 1 -> 1.
    assert found.mean_average_precision == pytest.approx((1 / 3 + 1 / 2 + 1 / 2 + 1) / 4)
    assert found.hits == {1: 1}
