"""This machine's CPU as hardware to plan for: a core's matrix product rate is measured, the rest is assumed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from pipeline.cpus import usable_cpus
from pipeline.forecast.hardware import Hardware

# Achieved rate, AMX's gain, memory bandwidth, the times per value and score and the overhead were fitted to `minivit
# bench plan` on one idle machine; see RESULTS.md.
# Speed of bf16 products relative to fp32 on one core, by instruction set; without these, bf16 is computed in fp32.
BF16_GAIN = {"amx_bf16": 3.3, "avx512_bf16": 2.0}
SIZE, SECONDS = 512, 0.15


def this_cpu() -> Hardware:
    """One node like this machine, with ranks that compute on CPU cores."""
    cores = usable_cpus()
    fp32_tflops = measured_flops_per_s() / 1e12
    return Hardware(
        source=f"fp32 rate measured on one of this machine's {cores} core(s)",
        bf16_tflops=fp32_tflops * bf16_gain(Path("/proc/cpuinfo").read_text()),
        fp32_tflops=fp32_tflops,
        memory_gib=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30 / cores,
        memory_gb_per_s=4.0,
        link_gb_per_s=2.0,
        network_gb_per_s=1.25,
        gpus_per_node=cores,
        cores_per_gpu=1,
        achieved_flops=0.7,
        latency_us=100.0,
        layer_us=0.0,
        value_ns=2.2,
        score_ns=8.5,
        overlaps=False,
        shares_cores=True,
        storage_gb_per_s=0.5,
        host_copy_gb_per_s=2.0,
        overhead_gib=0.7,
    )


def bf16_gain(cpuinfo: str) -> float:
    """Speed of bf16 products relative to fp32 on one core, from the flags in /proc/cpuinfo."""
    flags = set(cpuinfo.split())
    return next((gain for flag, gain in BF16_GAIN.items() if flag in flags), 1.0)


def measured_flops_per_s() -> float:
    """FLOP/s of fp32 products on one core, measured in CPU time, so that other jobs hardly disturb it.

    Runs in its own process, because OpenBLAS reads its number of threads when it is loaded.
    """
    one_thread = os.environ | dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    command = [sys.executable, "-m", __name__]
    done = subprocess.run(command, env=one_thread, capture_output=True, text=True, check=True)
    return float(done.stdout)


def best_flops_per_s() -> float:
    """The best rate of several repeats in this process."""
    import numpy as np

    a = np.ones((SIZE, SIZE), np.float32)
    best, until = 0.0, time.process_time() + SECONDS
    while time.process_time() < until:
        began = time.process_time()
        a @ a
        best = max(best, 2 * SIZE**3 / max(time.process_time() - began, 1e-9))
    return best


if __name__ == "__main__":
    print(best_flops_per_s())
