from __future__ import annotations

import pytest
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2.api.config import RunConfig, ScalingConfig

from pipeline.cluster import trainer


@pytest.mark.parametrize("url", ["", "127.0.0.1:8265"])
def test_only_a_dashboard_can_tell_a_watch_over_placement_groups_that_the_controller_has_died(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "get_dashboard_url", lambda: url)
    started = trainer.Trainer(lambda: None, scaling_config=ScalingConfig(), run_config=RunConfig(name="name"))
    kinds = [type(callback) for callback in started._create_default_callbacks()]
    assert (PlacementGroupCleanerCallback in kinds) == bool(url)
