from __future__ import annotations

from pipeline.bench.surgery import measure
from pipeline.models.model_costs import count_parameters
from pipeline.models.variants import build_spec


def test_the_state_is_adapted_to_another_grid_patch_and_head() -> None:
    result = measure("tiny", rounds=3)
    assert result["parameters"] == count_parameters(build_spec("tiny", image_size=224, num_classes=1000))
    assert result["grid"] == [(14, 14), (24, 24)]
    assert result["seconds"] == sorted(result["rounds"])[1] > 0
