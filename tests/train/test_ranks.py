"""Ranks with unequal shares compared with a plain loop over the global batch; checkpoints across world sizes."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm.optim
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.checkpoints.manifest import verify_checkpoint
from pipeline.checkpoints.selection import step_folder
from pipeline.checkpoints.state_reader import StateReader
from pipeline.checkpoints.storage import LocalStorage
from pipeline.models.drop_path import sample_keys
from pipeline.models.per_step import per_step
from pipeline.models.pos_embed import sincos_positions
from pipeline.train.muon import Muon
from pipeline.train.seeds import DROP_PATH, derive_seed

Results = list[dict[str, Any]]
STAGES = (0, 1, 2, 3)
PRECISIONS = ("fp32", "bf16")
EVERY = [(stage, precision) for stage in STAGES for precision in PRECISIONS if (stage, precision) != (0, "bf16")]
BF16 = [(stage, "bf16") for stage in STAGES[1:]]
TIED = [(stage, "fp32") for stage in STAGES]
FROZEN = [(0, "fp32"), *BF16]
SMALL = 65  # gradients of 1 on top of one of 256: in bf16 each of them alone would be lost
SHARES = {1: [8], 2: [5, 3], 3: [3, 0, 5]}
# (saved ZeRO stage, precision, ranks now, ZeRO stage now), all saved by two ranks.
CONVERSIONS = [
    *((saved, "fp32", ranks, now) for saved, ranks, now in product(STAGES, (1, 3), STAGES)),
    *((saved, "fp32", 2, now) for saved, now in product(STAGES, STAGES) if saved != now),
    *((saved, "bf16", 3, now) for saved, now in ((1, 3), (3, 2), (2, 2))),
]
# (saved ZeRO stage, ZeRO stage now) of other models and optimisers: each stage is written and read by two others.
PAIRS = [(saved, (saved + step) % len(STAGES)) for saved in STAGES for step in (1, 3)]

pytestmark = pytest.mark.timeout(600)  # the first of them waits for all cases of two ranks


def case(*parts: Any) -> str:
    return "-".join(map(str, parts))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where every case leaves its checkpoints, in a folder of its own name."""
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def two(run_ranks: Callable[..., Results], tmp_path_factory: pytest.TempPathFactory, root: Path) -> Results:
    """All cases of two ranks that start anew, and those that go on on two ranks."""
    cases: dict[str, Any] = {}
    for key in EVERY:
        cases[case("steps", *key)] = ["steps", [*key, [5, 3], 2, str(root / case("steps", *key))]]
        cases[case("not finite", *key)] = ["not_finite", [*key, [5, 3]]]
    for name, stage in product(("lamb", "muon", "plain"), STAGES):
        key = case(name, stage)
        cases[key] = ["steps", [stage, "fp32", [5, 3], 2, str(root / key), name]]
    for stage in STAGES[1:]:
        name = case("overlapped", stage)
        cases[name] = ["overlapped", [stage, "fp32", [5, 3], 2, str(root / name)]]
        cases[case("waits", stage)] = ["waits", [stage]]
        cases[case("accumulate", stage)] = ["accumulate", [stage, SMALL]]
    cases["first samples"] = ["first_samples", []]
    for name, shares, micro_batches in (("more parts than samples", [7, 1], 3), ("a rank without samples", [8, 0], 2)):
        cases[name] = ["steps", [2, "fp32", shares, micro_batches, str(root / name)]]
    for model, keys in (
        ("vit", EVERY),
        ("tied", TIED),
        ("lamb", TIED),
        ("muon", EVERY),
        ("plain", TIED),
        ("sincos", BF16),
        ("frozen", FROZEN),
    ):
        for stage, precision in keys:
            saved = case("save", model, stage, precision)
            cases[saved] = ["save_and_go_on", [stage, precision, model, str(root / saved), [5, 3]]]
            again = case("resume", model, stage, precision)
            cases[again] = ["resume", [stage, precision, model, str(root / saved), str(root / again), [5, 3]]]
    return run_ranks(2, tmp_path_factory.mktemp("two") / "ranks", cases)


@pytest.fixture(scope="module")
def converted(
    run_ranks: Callable[..., Results], tmp_path_factory: pytest.TempPathFactory, root: Path, two: Results
) -> dict[str, Any]:
    """Rank 0's results of every conversion."""
    found: dict[str, Any] = {}
    for world_size, shares in SHARES.items():
        cases = {}
        for saved, precision, ranks, now in CONVERSIONS:
            if ranks == world_size:
                name, source = case(saved, precision, ranks, now), case("save", "vit", saved, precision)
                cases[name] = ["resume", [now, precision, "vit", str(root / source), str(root / name), shares]]
                if precision == "fp32" and ranks == 3 and (saved, now) in PAIRS:
                    for model in ("tied", "lamb", "muon"):
                        again, source = case(model, name), case("save", model, saved, precision)
                        cases[again] = [
                            "resume",
                            [now, precision, model, str(root / source), str(root / again), shares],
                        ]
        found |= run_ranks(world_size, tmp_path_factory.mktemp("converted") / "ranks", cases)[0]
    return found


@pytest.fixture(scope="module")
def reference(program: SimpleNamespace) -> dict[str, Any]:
    return plain_steps(program, "sgd")


def plain_steps(program: SimpleNamespace, optimizer_name: str) -> dict[str, Any]:
    """Three steps in fp32 over the global batch, and the average, in plain PyTorch; drop path by the samples' slots."""
    torch.manual_seed(0)
    model = program.MiniViT.from_spec(program.SPEC)
    config = program.optimizer_config(optimizer_name)
    groups = program.parameter_groups(model, config)
    for group in groups:
        group["lr"] = config.lr * group["lr_scale"]
    optimizer: torch.optim.Optimizer
    if config.name == "sgd":
        optimizer = torch.optim.SGD(groups, momentum=config.momentum, nesterov=config.momentum > 0)
    elif config.name == "lamb":
        optimizer = timm.optim.Lamb(groups, eps=1e-6, max_grad_norm=None)
    else:
        optimizer = Muon(groups, config.lr, config.betas, config.momentum)
    averages = {name: value.detach().clone() for name, value in model.named_parameters()}
    losses, norm = [], torch.zeros(())
    for step in range(3):
        batch = program.global_batch(step)
        targets = batch.targets
        own, partner = (F.one_hot(labels, program.CLASSES) for labels in (targets["label"], targets["label_mix"]))
        share = targets["label_share"][:, None]
        target = share * own + (1 - share) * partner
        with per_step(model, keys=sample_keys(derive_seed(0, DROP_PATH), batch.slots)):
            logits = model((batch.views["image"].float() / 255 - 0.5) / 0.5)
        loss = F.cross_entropy(logits, target, label_smoothing=0.1, reduction="none") * batch.weights
        optimizer.zero_grad()
        (loss.sum() / batch.weights.sum()).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), program.CLIP)
        optimizer.step()
        decay = min(program.EMA_DECAY, (2 + step) / (11 + step))
        for name, value in model.named_parameters():
            averages[name] = decay * averages[name] + (1 - decay) * value.detach()
        losses.append((loss.sum() / batch.weights.sum()).item())
    return {"state": deepcopy(model.state_dict()), "averages": averages, "losses": losses, "grad_norm": float(norm)}


def saved_state(root: Path, name: str, step: int) -> dict[str, dict[str, Tensor]]:
    """Every kind of state in a checkpoint, whole, and the optimiser's scalars."""
    storage, folder = LocalStorage(root / name), step_folder(step)
    reader = StateReader(storage, folder, verify_checkpoint(storage, folder))
    return {key: reader.whole(key) for key in reader.keys} | {"scalars": reader.scalars}


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], atol: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=atol, rtol=0, msg=lambda text, name=name: f"{name}: {text}")


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name, value in expected.items() if not torch.equal(found[name], value)] == []


def assert_same_states(found: dict[str, dict[str, Tensor]], expected: dict[str, dict[str, Tensor]]) -> None:
    assert found.keys() == expected.keys()
    for key, state in expected.items():
        assert_same(found[key], state)


@pytest.mark.parametrize(
    ("stage", "name"),
    [
        *((stage, case("steps", stage, "fp32")) for stage in STAGES),
        (2, "more parts than samples"),
        (2, "a rank without samples"),
    ],
)
def test_unequal_shares_give_the_gradient_of_the_global_batch(
    two: Results, root: Path, reference: dict[str, Any], stage: int, name: str
) -> None:
    state = saved_state(root, name, 3)
    assert_close(state["weights"], reference["state"], atol=1e-5)
    assert_close(state["ema"], reference["averages"], atol=1e-5)
    for rank in two:
        assert rank[name]["losses"] == pytest.approx(reference["losses"], abs=1e-5)
        assert rank[name]["grad_norm"] == pytest.approx(reference["grad_norm"], rel=1e-4)


@pytest.mark.parametrize("stage", STAGES)
def test_lamb_measures_whole_tensors_wherever_their_parts_are(
    two: Results, root: Path, program: SimpleNamespace, stage: int
) -> None:
    state = saved_state(root, case("lamb", stage), 3)
    assert_close(state["weights"], plain_steps(program, "lamb")["state"], atol=1e-5)


@pytest.mark.parametrize("stage", STAGES)
def test_muon_orthogonalises_whole_matrices_wherever_their_parts_are(
    two: Results, root: Path, program: SimpleNamespace, stage: int
) -> None:
    """But for biases of keys, whose gradients are rounding errors, which AdamW's first steps make large."""
    state, expected = saved_state(root, case("muon", stage), 3), plain_steps(program, "muon")["state"]
    for weights in (state["weights"], expected):
        for name in [name for name in weights if name.endswith("in_proj_bias")]:
            weights[name].chunk(3)[1].zero_()
    assert_close(state["weights"], expected, atol=1e-5)
    layers = {name for name, value in state["weights"].items() if "layers" in name and value.ndim == 2}
    assert state["momentum_buffer"].keys() == layers
    assert not state["exp_avg"].keys() & layers, "a matrix has one moment"


@pytest.mark.parametrize("stage", STAGES)
def test_sgd_needs_no_momentum(two: Results, root: Path, program: SimpleNamespace, stage: int) -> None:
    state = saved_state(root, case("plain", stage), 3)
    assert state.keys() == {"weights", "ema", "scalars"}
    assert_close(state["weights"], plain_steps(program, "plain")["state"], atol=1e-5)


@pytest.mark.parametrize("stage", STAGES[1:])
def test_bf16_moves_the_weights_the_same_way(
    two: Results, root: Path, reference: dict[str, Any], program: SimpleNamespace, stage: int
) -> None:
    name = case("steps", stage, "bf16")
    state = saved_state(root, name, 3)["weights"]
    torch.manual_seed(0)
    start = program.MiniViT.from_spec(program.SPEC).state_dict()
    ours, theirs = (
        torch.cat([(moved[name] - start[name]).flatten() for name in start]) for moved in (state, reference["state"])
    )
    assert float((ours - theirs).norm() / theirs.norm()) < 0.1
    assert two[0][name]["losses"] == pytest.approx(reference["losses"], abs=0.05)
    assert all(value.dtype == torch.float32 for value in state.values())


@pytest.mark.parametrize("stage", STAGES[1:])
def test_reducing_during_the_backward_pass_takes_the_same_steps(two: Results, root: Path, stage: int) -> None:
    """And so do buckets of another size, up to the order in which the norm is summed."""
    found, expected = (saved_state(root, name, 3) for name in (case("overlapped", stage), case("steps", stage, "fp32")))
    assert_close(found["weights"], expected["weights"], atol=1e-6)


@pytest.mark.parametrize("stage", STAGES[1:])
def test_bf16_gradients_of_micro_batches_are_added_up_in_fp32(two: Results, stage: int) -> None:
    for rank in two:
        result = rank[case("accumulate", stage)]
        assert set(result["moved"].tolist()) == {256.0 + SMALL}
        assert result["said"] == "", "DeepSpeed's reports of memory collect all garbage first"


@pytest.mark.parametrize("stage", STAGES[1:])
def test_deepspeed_waits_for_the_device_only_where_it_reads_the_norm(two: Results, stage: int) -> None:
    """Its timer of throughput would do so before every forward pass."""
    assert [rank[case("waits", stage)]["waits"] for rank in two] == [0, 0]


@pytest.mark.parametrize(("stage", "precision"), EVERY)
def test_the_average_is_swapped_in_and_exactly_out(two: Results, root: Path, stage: int, precision: str) -> None:
    name = case("steps", stage, precision)
    for rank in two:
        result = rank[name]
        assert_same(result["after"], result["before"])
        assert any(not torch.equal(result["inside"][key], value) for key, value in result["before"].items())
        before, inside, after = result["answers"]
        assert torch.equal(before, after)
        assert not torch.equal(before, inside)  # small parameters, which ZeRO-3 keeps gathered, are swapped too
        if stage < 3:
            averages = saved_state(root, name, 3)["ema"]
            dtype = result["before"]["pos_embed"].dtype
            assert_same(result["inside"], {key: value.to(dtype) for key, value in averages.items()})


@pytest.mark.parametrize(("stage", "precision"), [key for key in EVERY if key[0] > 0])
def test_the_average_is_shared_out(two: Results, root: Path, stage: int, precision: str) -> None:
    """Four bytes a parameter over all ranks, with what pads groups or tensors to equal shares."""
    name = case("steps", stage, precision)
    averages = saved_state(root, name, 3)["ema"]
    whole = sum(4 * value.numel() for value in averages.values())
    held = [rank[name]["average_bytes"] for rank in two]
    assert whole <= sum(held) <= whole + 16 * len(averages)
    assert max(held) < 0.6 * whole


@pytest.mark.parametrize(("stage", "precision"), EVERY)
def test_a_step_that_is_not_finite_changes_nothing_on_any_rank(two: Results, stage: int, precision: str) -> None:
    for rank in two:
        result = rank[case("not finite", stage, precision)]
        assert (result["applied"], result["skipped"]) == (False, 1)
        assert_same(result["after"], result["before"])
        assert result["same_average"]
        assert all(loss == loss and loss < 10 for loss in result["losses"])


@pytest.mark.parametrize(
    ("model", "stage", "precision"),
    [("vit", *key) for key in EVERY]
    + [(model, *key) for model in ("tied", "lamb", "plain") for key in TIED]
    + [("muon", *key) for key in EVERY]
    + [("frozen", *key) for key in FROZEN],
)
def test_resume_on_the_same_ranks_is_bit_identical(
    two: Results, root: Path, model: str, stage: int, precision: str
) -> None:
    saved, again = case("save", model, stage, precision), case("resume", model, stage, precision)
    for rank in two:
        assert rank[again]["losses"] == rank[saved]["losses"]
    for step in (2, 4):
        assert_same_states(saved_state(root, again, step), saved_state(root, saved, step))


@pytest.mark.parametrize(("stage", "precision"), FROZEN)
def test_frozen_layers_stay_as_they_are_and_take_no_state(
    two: Results, root: Path, program: SimpleNamespace, stage: int, precision: str
) -> None:
    model = program.half_frozen()
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert {"pos_embed", "transformer.layers.0.linear1.weight"} <= frozen
    before, after = (saved_state(root, case("save", "frozen", stage, precision), step) for step in (2, 4))
    for name in before["weights"]:
        assert torch.equal(before["weights"][name], after["weights"][name]) == (name in frozen)
    for key in ("exp_avg", "exp_avg_sq", "ema"):
        assert after[key].keys() == before["weights"].keys() - frozen


@pytest.mark.parametrize(("stage", "precision"), BF16)
def test_sine_cosine_positions_are_saved_as_they_were_computed(
    two: Results, root: Path, program: SimpleNamespace, stage: int, precision: str
) -> None:
    storage, folder = LocalStorage(root / case("resume", "sincos", stage, precision)), step_folder(4)
    state = StateReader(storage, folder, verify_checkpoint(storage, folder)).model_state()
    table = sincos_positions(
        program.SPEC.backbone.grid, program.SPEC.backbone.embed_dim, program.SPEC.backbone.tokens.num_prefix
    )
    assert not torch.equal(table, table.bfloat16().float())
    assert torch.equal(state["pos_embed"], table)


@pytest.mark.parametrize(("saved", "precision", "ranks", "stage"), CONVERSIONS)
def test_resume_on_other_ranks_or_another_stage(
    two: Results, converted: dict[str, Any], root: Path, saved: int, precision: str, ranks: int, stage: int
) -> None:
    name, source = case(saved, precision, ranks, stage), case("save", "vit", saved, precision)
    assert_same_states(saved_state(root, name, 2), saved_state(root, source, 2))
    tolerance = 1e-5 if precision == "fp32" else 0.05
    assert converted[name]["losses"] == pytest.approx(two[0][source]["losses"], rel=tolerance)


@pytest.mark.parametrize(("saved", "stage"), PAIRS)
@pytest.mark.parametrize("optimizer", ["lamb", "muon"])
def test_optimisers_of_whole_tensors_go_on_on_other_ranks(
    two: Results, converted: dict[str, Any], root: Path, optimizer: str, saved: int, stage: int
) -> None:
    name, source = case(optimizer, saved, "fp32", 3, stage), case("save", optimizer, saved, "fp32")
    assert_same_states(saved_state(root, name, 2), saved_state(root, source, 2))
    assert converted[name]["losses"] == pytest.approx(two[0][source]["losses"], rel=1e-5)


@pytest.mark.parametrize(("saved", "stage"), PAIRS)
def test_shared_and_frozen_parameters_and_buffers_survive_every_conversion(
    two: Results, converted: dict[str, Any], root: Path, saved: int, stage: int
) -> None:
    name, source = case("tied", saved, "fp32", 3, stage), case("save", "tied", saved, "fp32")
    state, former = saved_state(root, name, 2), saved_state(root, source, 2)
    assert_same_states(state, former)
    assert {"frozen.weight", "shift", "first.weight"} <= state["weights"].keys()
    assert "second.weight" not in state["weights"]
    assert "frozen.weight" not in state["exp_avg"]
    assert converted[name]["losses"] == pytest.approx(two[0][source]["losses"], rel=1e-5)


def test_every_rank_stops_where_no_rank_has_a_good_sample(two: Results) -> None:
    for rank in two:
        message = rank["first samples"]
        assert message.startswith(
            "t: all of the first 8 samples are bad: no image in 4, no label in 4; check the shards"
        )
