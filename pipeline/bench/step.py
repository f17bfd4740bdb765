"""The training step compared with stock `nn.TransformerEncoder` and timm: speed, utilisation, peak memory."""

from __future__ import annotations

import statistics
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, get_args

import torch

from pipeline.bench.peaks import choose_device, peak_flops_per_s, processor_name
from pipeline.bench.step_process import Contender, StepJob, on_its_own
from pipeline.models.encoder import Recompute
from pipeline.models.model_costs import count_parameters, forward_flops
from pipeline.models.model_spec import ModelSpec
from pipeline.models.variants import build_spec

CONTENDERS = ("ours", "stock", "timm")
PEERS = CONTENDERS[1:]
BACKWARD = 2  # times the products of the forward pass
DEEP = 24
STATE_BYTES = {"fp32": 16, "bf16": 20}  # per parameter; in bf16 its gradient also exists in fp32 while it is applied
EMULATED_BELOW = 0.1  # of the fp32 rate: the processor then has no arithmetic for this dtype
EMULATED_BATCHES = (1, 4)  # of peers in that case: the first for speed, both for memory, which grows linearly


@dataclass(frozen=True)
class Mode:
    """Dtype of weights and activations, and whether `torch.compile` is used; `bf16` keeps an fp32 master copy."""

    precision: str
    compiled: bool = False


MODES = {"fp32": Mode("fp32"), "bf16": Mode("bf16"), "bf16_compiled": Mode("bf16", compiled=True)}


def measure(
    variants: list[str],
    modes: list[str],
    *,
    batch_size: int,
    threads: int,
    rounds: int,
    image_size: int = 224,
    deep: int = DEEP,
    device: str | None = None,
    peak_tflops: float | None = None,
) -> dict[str, Any]:
    """Forward, backward and fused AdamW of every contender in every mode, by variant; medians of alternating rounds.

    `ratio` is ours to the better peer in the same mode; `ratio_to_fp32` to the better peer in fp32, the usual choice if
    bf16 is only emulated. FLOP/s count the products that a contender computes (ours skips what the head does not read),
    as shares of torch's best matrix product in the mode's dtype and in fp32; on a GPU also of its tensor cores' peak
    (`mfu`; Chowdhery et al. 2022), which `peak_tflops` (in bf16) sets for GPUs missing from the table.
    """
    processor = processor_name(choose_device(device))
    peaks = {precision: on_its_own(matmul_flops_per_s, precision, threads) for precision in ("fp32", "bf16")}
    settings = {"batch_size": batch_size, "threads": threads, "rounds": rounds, "image_size": image_size}
    found: dict[str, Any] = {
        "settings": {"processor": processor, **settings},
        "matmul_gflops_per_s": {name: value / 1e9 for name, value in peaks.items()},
    }
    for variant in variants:
        spec = build_spec(variant, image_size=image_size, num_classes=1000)
        by_mode = found[variant] = {
            name: measure_mode(spec, MODES[name], peaks, batch_size, threads, rounds) for name in modes
        }
        for name, result in by_mode.items():
            add_mfu(result, spec, peak_flops_per_s(processor, MODES[name].precision, peak_tflops))
            if "fp32" in by_mode:
                result["ratio_to_fp32"] = result["ours"]["images_per_s"] / better_peer(by_mode["fp32"])
        by_mode["checkpointing"] = {
            MODES[name].precision: measure_checkpointing(
                spec.with_backbone(depth=deep),
                MODES[name].precision,
                peaks,
                batch_size,
                threads,
            )
            for name in modes
            if not MODES[name].compiled
        }
    return found


def measure_mode(
    spec: ModelSpec, mode: Mode, peaks: dict[str, float], batch_size: int, threads: int, rounds: int
) -> dict[str, Any]:
    """All contenders in one mode, each in its own process, with alternating steps."""
    batches = {
        name: batch_size if name == "ours" else peers_batch(mode.precision, peaks, batch_size) for name in CONTENDERS
    }
    jobs = {name: StepJob(name, spec, mode.precision, mode.compiled, "none", threads) for name in CONTENDERS}
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    with ExitStack() as stack:
        running = {name: stack.enter_context(Contender(job)) for name, job in jobs.items()}
        # A compiled step's peak would be the compiler's.
        memory = {} if mode.compiled else {name: peak_memory(running[name], batches[name], batch_size) for name in jobs}
        for number in range(1 + rounds):
            for name in jobs:
                took = running[name].step_s(batches[name])
                if number:  # the first round warms up
                    seconds[name].append(took)
    result: dict[str, Any] = {}
    for name in jobs:
        images_per_s = batches[name] / statistics.median(seconds[name])
        flops_per_s = images_per_s * step_flops(spec, name)
        result[name] = {
            "images_per_s": images_per_s,
            "rounds": [batches[name] / one for one in seconds[name]],
            "batch_size": batches[name],
            "share_of_matmul_peak": flops_per_s / peaks[mode.precision],
            "share_of_fp32_matmul_peak": flops_per_s / peaks["fp32"],
        }
        if name in memory:
            result[name]["peak_megabytes"] = memory[name] / 1e6
    result["ratio"] = result["ours"]["images_per_s"] / better_peer(result)
    if memory:
        result["memory_ratio_to_timm"] = memory["ours"] / memory["timm"]
    return result


def add_mfu(result: dict[str, Any], spec: ModelSpec, peak: float | None) -> None:
    """Add each contender's share of the peak FLOP/s, if known, to the result of `measure_mode`."""
    if peak is not None:
        for name in CONTENDERS:
            result[name]["mfu"] = result[name]["images_per_s"] * step_flops(spec, name) / peak


def peers_batch(precision: str, peaks: dict[str, float], batch_size: int) -> int:
    """Batch size of the peers: one image if the dtype is only emulated."""
    return EMULATED_BATCHES[0] if peaks[precision] < EMULATED_BELOW * peaks["fp32"] else batch_size


def better_peer(result: dict[str, Any]) -> float:
    """Images/s of the faster peer in a mode."""
    return max(result[name]["images_per_s"] for name in PEERS)


def peak_memory(contender: Contender, runs: int, wanted: int) -> float:
    """Peak bytes of a step of `wanted` images, extrapolated from two smaller batches if it only `runs` fewer."""
    if runs == wanted:
        return contender.peak_bytes(wanted)
    small, large = EMULATED_BATCHES
    first, second = contender.peak_bytes(small), contender.peak_bytes(large)
    return first + (second - first) * (wanted - small) / (large - small)


def step_flops(spec: ModelSpec, name: str) -> int:
    """FLOPs in the products of a training step on one image."""
    carried_out = spec if name == "ours" else spec.with_backbone(pool="avg")  # the others compute the full last layer
    return (1 + BACKWARD) * forward_flops(carried_out)


def measure_checkpointing(
    spec: ModelSpec, precision: str, matmul_peaks: dict[str, float], batch_size: int, threads: int
) -> dict[str, Any]:
    """Peak megabytes of our step by what is recomputed; full recomputation as a share of none, ours or timm's.

    `states_megabytes` are weights, gradients, master copy and moments, which checkpointing does not affect;
    `share_of_activations` is that of the rest.
    """
    peaks = {}
    for recompute in get_args(Recompute):
        with Contender(StepJob("ours", spec, precision, False, recompute, threads)) as contender:
            peaks[recompute] = contender.peak_bytes(batch_size) / 1e6
    with Contender(StepJob("timm", spec, precision, False, "none", threads)) as contender:
        timm = peak_memory(contender, peers_batch(precision, matmul_peaks, batch_size), batch_size) / 1e6
    states = count_parameters(spec) * STATE_BYTES[precision] / 1e6
    return {
        "depth": spec.backbone.depth,
        "peak_megabytes": peaks,
        "share": peaks["full"] / peaks["none"],
        "timm_megabytes": timm,
        "share_of_timm": peaks["full"] / timm,
        "states_megabytes": states,
        "share_of_activations": (peaks["full"] - states) / (peaks["none"] - states),
    }


def matmul_flops_per_s(precision: str, threads: int) -> float:
    """Best FLOP/s of a product of two square matrices in a dtype, over sizes and repeats."""
    from time import perf_counter

    from pipeline.train.device import allow_tf32, precision_dtype, select_device

    device, dtype, best = select_device(), precision_dtype(precision), 0.0
    allow_tf32()
    torch.set_num_threads(threads)
    for size in (512, 1024, 2048) if device.type == "cpu" else (4096, 8192):
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        until = perf_counter() + 1
        while (began := perf_counter()) < until:
            (a @ b)[0, 0].item()  # waits for the device
            best = max(best, 2 * size**3 / (perf_counter() - began))
    return best
