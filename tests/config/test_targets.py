from __future__ import annotations

import pickle
from typing import Any

import pytest

from pipeline.config.data import DatasetConfig


@pytest.mark.parametrize("targets", [{}, {"class_id": "cls"}, {"mask": {"member": "seg.png", "groups": {"a": ["b"]}}}])
def test_settings_go_to_other_processes(targets: dict[str, Any]) -> None:
    """Loader workers and ranks get them pickled."""
    dataset = DatasetConfig(shards="data", targets=targets)
    found = pickle.loads(pickle.dumps(dataset))
    assert found == dataset
    assert found.targets.given() == dataset.targets.given()
