"""Two ranks with unequal shares against a plain PyTorch loop over the global batch; checkpoints across world sizes."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

Results = list[dict[str, Any]]
STAGES = (0, 1, 2, 3)
PRECISIONS = ("fp32", "bf16")
EVERY = [(stage, precision) for stage in STAGES for precision in PRECISIONS if (stage, precision) != (0, "bf16")]
SAVED = [(0, "fp32"), (1, "fp32"), (2, "bf16"), (3, "fp32"), (3, "bf16")]
# (saved ZeRO stage, precision, ranks now, ZeRO stage now), all saved by two ranks. Without ZeRO there is no conversion.
CONVERSIONS = [(1, "fp32", 1, 1), (1, "fp32", 2, 2), (2, "bf16", 1, 2)]

pytestmark = pytest.mark.timeout(600)  # the first of them waits for all cases of two ranks


def case(*parts: Any) -> str:
    return "-".join(map(str, parts))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def two(run_ranks: Callable[..., Results], tmp_path_factory: pytest.TempPathFactory, checkpoints: Path) -> Results:
    """All cases of two ranks."""
    cases: dict[str, Any] = {case("steps", *key): ["steps", [*key, [5, 3], 2]] for key in EVERY}
    cases["more parts than samples"] = ["steps", [2, "fp32", [7, 1], 3]]
    cases["a rank without samples"] = ["steps", [2, "fp32", [8, 0], 2]]
    for key in SAVED:
        cases[case("save", *key)] = ["save_and_go_on", [*key, str(checkpoints / case(*key)), [4, 4]]]
    return run_ranks(2, tmp_path_factory.mktemp("two") / "ranks", cases)


@pytest.fixture(scope="module")
def converted(
    run_ranks: Callable[..., Results], tmp_path_factory: pytest.TempPathFactory, checkpoints: Path, two: Results
) -> dict[str, Any]:
    """Rank 0's results of every conversion."""
    found: dict[str, Any] = {}
    for world_size, shares in ((1, [8]), (2, [5, 3])):
        cases = {
            case(saved, precision, world_size, stage): [
                "resume",
                [stage, precision, str(checkpoints / case(saved, precision)), shares, 2, saved],
            ]
            for saved, precision, ranks, stage in CONVERSIONS
            if ranks == world_size
        }
        found |= run_ranks(world_size, tmp_path_factory.mktemp("converted") / "ranks", cases)[0]
    return found


@pytest.fixture(scope="module")
def reference(program: SimpleNamespace) -> dict[str, Any]:
    """Three steps of SGD in fp32 over the global batch, and the average, in plain PyTorch."""
    torch.manual_seed(0)
    model = program.MiniViT.from_spec(program.SPEC)
    config = program.optimizer_config("sgd")
    groups = program.parameter_groups(model, config, program.SPEC.depth)
    for group in groups:
        group["lr"] = config.lr * group["lr_scale"]
    optimizer = torch.optim.SGD(groups, momentum=config.momentum, nesterov=True)
    averages = {name: value.detach().clone() for name, value in model.named_parameters()}
    losses, norm = [], torch.zeros(())
    for step in range(3):
        batch = program.global_batch(step)
        own, partner = (F.one_hot(labels, program.CLASSES) for labels in (batch.labels, batch.labels_mix))
        target = batch.mix[:, None] * own + (1 - batch.mix[:, None]) * partner
        logits = model((batch.images.float() / 255 - 0.5) / 0.5)
        loss = F.cross_entropy(logits, target, label_smoothing=0.1, reduction="none") * batch.weights
        optimizer.zero_grad()
        (loss.sum() / program.GLOBAL_BATCH_SIZE).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), program.CLIP)
        optimizer.step()
        decay = min(program.EMA_DECAY, (2 + step) / (11 + step))
        for name, value in model.named_parameters():
            averages[name] = decay * averages[name] + (1 - decay) * value.detach()
        losses.append((loss.sum() / batch.weights.sum()).item())
    return {"state": deepcopy(model.state_dict()), "averages": averages, "losses": losses, "grad_norm": float(norm)}


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], atol: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=atol, rtol=0, msg=lambda text, name=name: f"{name}: {text}")


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name, value in expected.items() if not torch.equal(found[name], value)] == []


@pytest.mark.parametrize(
    ("stage", "name"),
    [
        *((stage, case("steps", stage, "fp32")) for stage in STAGES),
        (2, "more parts than samples"),
        (2, "a rank without samples"),
    ],
)
def test_unequal_shares_give_the_gradient_of_the_global_batch(
    two: Results, reference: dict[str, Any], stage: int, name: str
) -> None:
    for rank in two:
        result = rank[name]
        assert_close(result["state"], reference["state"], atol=1e-5)
        assert_close(result["averages"], reference["averages"], atol=1e-5)
        assert result["losses"] == pytest.approx(reference["losses"], abs=1e-5)
        if stage > 0:  # DeepSpeed keeps no norm without ZeRO
            assert result["grad_norm"] == pytest.approx(reference["grad_norm"], rel=1e-4)


@pytest.mark.parametrize("stage", STAGES[1:])
def test_bf16_moves_the_weights_the_same_way(
    two: Results, reference: dict[str, Any], program: SimpleNamespace, stage: int
) -> None:
    result = two[0][case("steps", stage, "bf16")]
    torch.manual_seed(0)
    start = program.MiniViT.from_spec(program.SPEC).state_dict()
    ours, theirs = (
        torch.cat([(state[name] - start[name]).flatten() for name in start])
        for state in (result["state"], reference["state"])
    )
    assert float((ours - theirs).norm() / theirs.norm()) < 0.1
    assert result["losses"] == pytest.approx(reference["losses"], abs=0.05)


@pytest.mark.parametrize(("stage", "precision"), EVERY)
def test_ranks_agree_on_the_whole_state(two: Results, stage: int, precision: str) -> None:
    first, second = (rank[case("steps", stage, precision)] for rank in two)
    assert_same(first["state"], second["state"])
    assert_same(first["averages"], second["averages"])
    assert all(value.dtype == torch.float32 for value in first["state"].values())


@pytest.mark.parametrize(("stage", "precision"), EVERY)
def test_the_average_is_swapped_in_and_exactly_out(two: Results, stage: int, precision: str) -> None:
    for rank in two:
        result = rank[case("steps", stage, precision)]
        assert_same(result["after"], result["before"])
        assert any(not torch.equal(result["inside"][name], value) for name, value in result["before"].items())
        if stage < 3:
            dtype = result["before"]["pos_embed"].dtype
            assert_same(result["inside"], {name: value.to(dtype) for name, value in result["averages"].items()})


@pytest.mark.parametrize(("stage", "precision"), EVERY)
def test_the_average_is_shared_out(two: Results, stage: int, precision: str) -> None:
    """Four bytes a parameter over all ranks; under ZeRO-3 a tensor is padded to a whole slice for each rank."""
    results = [rank[case("steps", stage, precision)] for rank in two]
    whole = sum(4 * value.numel() for value in results[0]["averages"].values())
    held = sum(result["average_bytes"] for result in results)
    assert whole <= held <= whole + 4 * len(results[0]["averages"])
    assert max(result["average_bytes"] for result in results) < 0.75 * whole


@pytest.mark.parametrize(("stage", "precision"), SAVED)
def test_resume_on_the_same_ranks_is_bit_identical(two: Results, stage: int, precision: str) -> None:
    for rank in two:
        result = rank[case("save", stage, precision)]
        assert_same(result["resumed"]["loaded"], result["saved"])
        assert_same(result["resumed"]["loaded_averages"], result["saved_averages"])
        assert result["resumed"]["losses"] == result["undisturbed"]["losses"]
        assert_same(result["resumed"]["state"], result["undisturbed"]["state"])
        assert_same(result["resumed"]["averages"], result["undisturbed"]["averages"])


@pytest.mark.parametrize(("saved", "precision", "ranks", "stage"), CONVERSIONS)
def test_resume_on_other_ranks_or_another_stage(
    two: Results, converted: dict[str, Any], saved: int, precision: str, ranks: int, stage: int
) -> None:
    result, former = converted[case(saved, precision, ranks, stage)], two[0][case("save", saved, precision)]
    assert_same(result["loaded"], former["saved"])
    assert_same(result["loaded_averages"], former["saved_averages"])
    tolerance = 1e-5 if precision == "fp32" else 0.05
    assert result["losses"] == pytest.approx(former["undisturbed"]["losses"], abs=tolerance)
