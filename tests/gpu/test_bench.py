"""`bench step --device cuda`: ViT-S through the command, and ViT-B; prints figures for whoever runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.bench import step
from pipeline.bench.peaks import peak_flops_per_s, processor_name
from pipeline.models.variants import build_spec

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]

MINIVIT = Path(sys.executable).with_name("minivit")
BATCH, ROUNDS = 64, 5


def test_vit_s_through_the_command(device: torch.device, capsys: pytest.CaptureFixture[str]) -> None:
    command = [MINIVIT, "bench", "step", "--device", device.type, "--variant", "small", "--mode", "bf16", "--json"]
    command += ["--batch-size", str(BATCH), "--rounds", str(ROUNDS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["settings"]["processor"] == processor_name(device)
    check(result["small"]["bf16"], device)
    tell("ViT-S/16, bf16", result["small"]["bf16"], capsys)


def test_vit_b_against_timm(device: torch.device, capsys: pytest.CaptureFixture[str]) -> None:
    spec = build_spec("base", image_size=224, num_classes=1000)
    rates = {precision: step.on_its_own(step.matmul_flops_per_s, precision, 2) for precision in ("fp32", "bf16")}
    result = step.measure_mode(spec, step.MODES["bf16"], rates, BATCH, threads=2, rounds=ROUNDS)
    step.add_mfu(result, spec, peak_flops_per_s(processor_name(device), "bf16"))
    check(result, device)
    tell("ViT-B/16, bf16", result, capsys)


def check(result: dict[str, Any], device: torch.device) -> None:
    """Shares of the processor's peak are between 0 and 1."""
    for name in step.CONTENDERS:
        found = result[name]
        assert found["batch_size"] == BATCH
        assert 0 < found["share_of_matmul_peak"] < 1, found
        if peak_flops_per_s(processor_name(device), "bf16"):
            assert 0 < found["mfu"] < 1, found


def tell(what: str, result: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\n{what}, batches of {BATCH}:")
        for name in step.CONTENDERS:
            found = result[name]
            shares = f"{found['share_of_matmul_peak']:.0%} of torch's best product"
            shares += f", MFU {found['mfu']:.0%}" if "mfu" in found else ""
            memory = f", {found['peak_megabytes']:,.0f} MB" if "peak_megabytes" in found else ""
            print(f"  {name:6} {found['images_per_s']:9,.0f} images/s, {shares}{memory}")
