from __future__ import annotations

import pytest

from pipeline.bench.plan import CASES, PlanCase, compare_forecast, predict, train_case
from pipeline.forecast.known_hardware import KNOWN

# A core of 100 GFLOP/s.
CORE = KNOWN["h100"].model_copy(
    update={
        "fp32_tflops": 0.1,
        "bf16_tflops": 0.1,
        "achieved_flops": 1.0,
        "layer_us": 0.0,
        "value_ns": 4.0,
        "overlaps": False,
        "shares_cores": True,
        "cores_per_gpu": 1,
        "overhead_gib": 0.7,
    }
)


def test_a_case_is_predicted_and_measured() -> None:
    """The forecast and the measurement have the same order of magnitude on any machine."""
    case = PlanCase("nano", 28, 32, "fp32", zero_stage=1)
    found = compare_forecast(case, predict(case, CORE), train_case(case, 2), CORE)
    assert 0.1 < found["ratio"] < 10
    assert 0.5 < found["memory_ratio"] < 2
    assert found["measured_s"] > 0.001
    assert 0 < found["own_megabytes"] < found["measured_megabytes"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.variant}-{case.image_size}-{case.precision}")
def test_every_case_is_a_stage(case: PlanCase) -> None:
    found = predict(case, CORE)
    assert found.step.compute_s > 0
    assert (found.step.exposed_s > 0) == (case.ranks > 1)
