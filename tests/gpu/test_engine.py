"""DeepSpeed on a GPU: every ZeRO stage compared with the CPU, compiled steps, and two ranks on one GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Results = list[dict[str, Any]]

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]

EVERY = [(0, "fp32"), *((stage, precision) for stage in (1, 2, 3) for precision in ("fp32", "bf16"))]
SHARED = [(stage, "fp32") for stage in (0, 1, 2)]
TOLERANCE = {"fp32": 1e-4, "bf16": 0.05}  # of losses around 1.2, as between the ranks' tests on CPUs
SMALL = 65


def case(*parts: Any) -> str:
    return "-".join(map(str, parts))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def on_cpu(ranks_on: Callable[..., Results], root: Path) -> dict[str, Any]:
    """Three steps in fp32 on the CPU."""
    [rank] = ranks_on(1, {"steps": ["steps", [2, "fp32", [8], 2, str(root / "cpu")]]}, cpu=True)
    return rank["steps"]


@pytest.fixture(scope="module")
def alone(ranks_on: Callable[..., Results], root: Path) -> dict[str, Any]:
    """All cases of a rank with its own GPU."""
    cases: dict[str, Any] = {}
    for stage, precision in EVERY:
        name = case(stage, precision)
        cases[f"steps {name}"] = ["steps", [stage, precision, [8], 2, str(root / f"steps {name}")]]
        cases[f"not finite {name}"] = ["not_finite", [stage, precision, [8]]]
        saved, again = str(root / f"save {name}"), str(root / f"resume {name}")
        cases[f"save {name}"] = ["save_and_go_on", [stage, precision, "vit", saved, [8]]]
        cases[f"resume {name}"] = ["resume", [stage, precision, "vit", saved, again, [8]]]
    for stage in (1, 2):
        cases[f"compiled {stage}"] = ["compiled", [stage, "fp32"]]
    for stage in (1, 2, 3):
        cases[f"accumulate {stage}"] = ["accumulate", [stage, SMALL]]
    cases["stall"] = ["stall", [str(root / "stall")]]
    [rank] = ranks_on(1, cases)
    return rank


@pytest.fixture(scope="module")
def shared(ranks_on: Callable[..., Results], root: Path) -> Results:
    """Two ranks on one GPU, over gloo, because NCCL refuses that."""
    cases = {
        case(stage, precision): ["steps", [stage, precision, [5, 3], 2, str(root / case("two", stage))]]
        for stage, precision in SHARED
    }
    return ranks_on(2, cases)


@pytest.mark.parametrize(("stage", "precision"), EVERY)
def test_every_zero_stage_takes_the_steps_of_a_cpu(
    alone: dict[str, Any], on_cpu: dict[str, Any], stage: int, precision: str
) -> None:
    found = alone[f"steps {case(stage, precision)}"]
    assert found["losses"] == pytest.approx(on_cpu["losses"], abs=TOLERANCE[precision])
    assert found["grad_norm"] == pytest.approx(on_cpu["grad_norm"], rel=10 * TOLERANCE[precision])


@pytest.mark.parametrize(("stage", "precision"), EVERY)
def test_resume_is_bit_identical(alone: dict[str, Any], stage: int, precision: str) -> None:
    name = case(stage, precision)
    assert alone[f"resume {name}"]["losses"] == alone[f"save {name}"]["losses"]


@pytest.mark.parametrize(("stage", "precision"), EVERY)
def test_a_step_that_is_not_finite_is_skipped(alone: dict[str, Any], stage: int, precision: str) -> None:
    found = alone[f"not finite {case(stage, precision)}"]
    assert (found["applied"], found["skipped"], found["same_average"]) == (False, 1, True)
    assert all(loss < 10 for loss in found["losses"])


@pytest.mark.parametrize("stage", [1, 2])
def test_compiled_layers_take_the_same_steps(alone: dict[str, Any], on_cpu: dict[str, Any], stage: int) -> None:
    assert alone[f"compiled {stage}"]["losses"] == pytest.approx(on_cpu["losses"], abs=TOLERANCE["fp32"])


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_bf16_gradients_are_added_up_in_fp32(alone: dict[str, Any], stage: int) -> None:
    assert set(alone[f"accumulate {stage}"]["moved"].tolist()) == {256.0 + SMALL}


@pytest.mark.parametrize(("stage", "precision"), SHARED)
def test_two_ranks_share_a_gpu(shared: Results, on_cpu: dict[str, Any], stage: int, precision: str) -> None:
    for rank in shared:
        assert rank[case(stage, precision)]["losses"] == pytest.approx(on_cpu["losses"], abs=TOLERANCE[precision])


def test_training_waits_for_a_fraction_of_a_save(alone: dict[str, Any]) -> None:
    """At most for the copy to the host, while the rest of the save takes several times as long."""
    found = alone["stall"]
    assert found["waited_s"] < found["took_s"] / 2, found
