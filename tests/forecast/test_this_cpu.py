from __future__ import annotations

import pytest

from pipeline.forecast.this_cpu import bf16_gain, this_cpu


@pytest.mark.parametrize(
    ("flags", "gain"),
    [("fpu avx2 avx512f avx512_bf16 amx_tile amx_bf16", 3.3), ("avx512_bf16 avx2", 2), ("fpu avx2", 1), ("", 1)],
)
def test_bf16_by_instruction_set(flags: str, gain: float) -> None:
    assert bf16_gain(f"processor\t: 0\nflags\t\t: {flags}\nbogomips\t: 5000\n") == gain


def test_a_core_is_measured() -> None:
    """Any x86 core with AVX2 reaches tens of GFLOP/s, none reaches a TFLOP/s in fp32."""
    found = this_cpu()
    assert 0.005 < found.fp32_tflops < 1
    assert found.cores_per_gpu == 1
    assert not found.overlaps
