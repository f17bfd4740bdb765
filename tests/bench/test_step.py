from __future__ import annotations

import pytest
import torch

from pipeline.bench import step
from pipeline.bench.step_peers import StockViT, timm_vit
from pipeline.bench.step_process import StepJob, Training
from pipeline.models.minivit import MiniViT
from pipeline.models.model_costs import forward_flops
from pipeline.models.timm_bridge import to_timm
from pipeline.models.variants import build_spec

SPEC = build_spec("nano", image_size=28, num_classes=10)
PEAKS = {"fp32": 1e12, "bf16": 1e12}


def test_the_peers_are_the_same_model() -> None:
    """All contenders compute the same mathematics: the same weights give the same logits."""
    ours, stock, timm = MiniViT.from_spec(SPEC), StockViT(SPEC), timm_vit(SPEC)
    stock.load_state_dict({name.removeprefix("patch_embed."): value for name, value in ours.state_dict().items()})
    timm.load_state_dict(to_timm(ours.state_dict(), SPEC))
    images = torch.randn(2, 3, 28, 28)
    for peer in (stock, timm):
        torch.testing.assert_close(peer(images), ours(images), atol=1e-5, rtol=1e-4)


def test_every_contender_is_measured_in_turn() -> None:
    result = step.measure_mode(SPEC, step.MODES["fp32"], PEAKS, batch_size=64, threads=1, rounds=1)
    for name in step.CONTENDERS:
        found = result[name]
        assert len(found["rounds"]) == 1
        assert found["images_per_s"] == found["rounds"][0] > 0
        assert found["share_of_matmul_peak"] * 1e12 == pytest.approx(
            found["images_per_s"] * step.step_flops(SPEC, name)
        )
        assert 5 < found["peak_megabytes"] < 500, "64 images of nano keep some tens of megabytes"
    better = max(result["stock"]["images_per_s"], result["timm"]["images_per_s"])
    assert result["ratio"] == result["ours"]["images_per_s"] / better


def test_a_dtype_without_arithmetic_of_its_own_is_measured_on_few_images() -> None:
    class Growing:
        def peak_bytes(self, batch_size: int) -> int:
            return 1000 + 7 * batch_size

    assert step.peak_memory(Growing(), runs=1, wanted=16) == 1000 + 7 * 16
    assert step.peak_memory(Growing(), runs=16, wanted=16) == 1000 + 7 * 16


def test_bf16_weights_follow_an_fp32_copy_that_takes_the_step() -> None:
    training = Training(StepJob("ours", SPEC, "bf16", False, "none", threads=1))
    before = training.master.weights.detach().clone()
    training.step_s(4, None)
    weights = [weight.detach() for weight in training.model.parameters()]
    assert {weight.dtype for weight in weights} == {torch.bfloat16}
    after = training.master.weights.detach()
    torch.testing.assert_close(torch.cat([weight.flatten() for weight in weights]), after.bfloat16(), atol=0, rtol=0)
    moved = (after - before).abs()  # by the learning rate, where there is a gradient at all
    assert 0.9e-4 < moved.quantile(0.9) < 1.1e-4


def test_work_is_counted_as_it_is_carried_out() -> None:
    assert step.step_flops(SPEC, "ours") == 3 * forward_flops(SPEC)
    assert step.step_flops(SPEC, "timm") == step.step_flops(SPEC, "stock") > step.step_flops(SPEC, "ours")


def test_mfu_is_the_share_of_a_peak_that_is_known() -> None:
    result = {name: {"images_per_s": 1000.0} for name in step.CONTENDERS}
    step.add_mfu(result, SPEC, None)
    assert all("mfu" not in found for found in result.values())
    step.add_mfu(result, SPEC, 1e12)
    for name, found in result.items():
        assert found["mfu"] == pytest.approx(1000 * step.step_flops(SPEC, name) / 1e12)


def test_checkpointing_saves_memory() -> None:
    spec = build_spec("nano", image_size=28, num_classes=10, depth=24)
    result = step.measure_checkpointing(spec, "fp32", PEAKS, batch_size=64, threads=1)
    peaks = result["peak_megabytes"]
    assert peaks["full"] < peaks["selective"] < peaks["none"]
    assert result["share"] == peaks["full"] / peaks["none"] < 0.5
    assert result["share_of_timm"] == peaks["full"] / result["timm_megabytes"] < 0.5
    states = result["states_megabytes"]
    assert states == pytest.approx(16e-6 * sum(weight.numel() for weight in MiniViT.from_spec(spec).parameters()))
    assert result["share_of_activations"] == (peaks["full"] - states) / (peaks["none"] - states) < result["share"]
