"""Machines to plan for: the figures of a kind of node."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from pipeline.config.section import Positive, Section

Amount = Annotated[float, Field(gt=0)]
Part = Annotated[float, Field(gt=0, le=1)]
FP32 = 4


class Hardware(Section):
    """A kind of node. Published figures are peaks, bandwidths those of one direction; the rest is assumed.

    On a node without GPUs, a CPU core, or a rank's group of cores, stands for a GPU.
    """

    source: str = Field(default="the file", description="where the published figures come from")
    bf16_tflops: Amount = Field(description="dense bf16 matrix products of a GPU")
    fp32_tflops: Amount = Field(description="matrix products of fp32 tensors, in TF32 where the GPU has it")
    memory_gib: Amount = Field(description="of a GPU")
    memory_gb_per_s: Amount = Field(description="of a GPU")
    link_gb_per_s: Amount = Field(description="of a GPU to the others of its node (NVLink, xGMI, PCIe)")
    network_gb_per_s: Amount = Field(description="of a GPU's share of its node's network cards")
    gpus_per_node: Positive
    cores_per_gpu: Positive = Field(description="CPU cores of a node for each of its GPUs")
    achieved_flops: Part = Field(default=0.5, description="share of the peak that matrix products reach")
    achieved_bandwidth: Part = Field(default=0.8, description="share of link and network that collectives reach")
    latency_us: Amount = Field(default=10.0, description="of one hop of a collective")
    layer_us: Annotated[float, Field(ge=0)] = Field(
        default=400.0, description="host time to launch a layer's kernels, forward and backward"
    )
    value_ns: Amount | None = Field(
        default=None,
        description="time of norms, softmax and activations per value kept for the backward pass; default: six passes "
        "over memory",
    )
    score_ns: Annotated[float, Field(ge=0)] = Field(
        default=0.0,
        description="time of an attention score beyond its products; fused attention has none",
    )
    overlaps: bool = Field(default=True, description="whether gradients are reduced during the backward pass")
    shares_cores: bool = Field(default=False, description="whether loader workers run on the cores that train")
    storage_gb_per_s: Amount = Field(default=2.0, description="of a node, reading or writing")
    host_copy_gb_per_s: Amount = Field(default=20.0, description="of a GPU to its host's memory")
    overhead_gib: Annotated[float, Field(ge=0)] = Field(
        default=2.0, description="memory of a rank for libraries, communication and fragmentation"
    )

    def peak_flops(self, width: int) -> float:
        """FLOP/s that matrix products of values of `width` bytes reach."""
        return 1e12 * self.achieved_flops * (self.fp32_tflops if width == FP32 else self.bf16_tflops)

    @property
    def memory_bytes(self) -> int:
        return int(self.memory_gib * 2**30)

    def joined(self, cores: int) -> Hardware:
        """The node of a machine without GPUs with `cores` cores for each rank, at most all."""
        cores = min(cores, self.gpus_per_node)
        grows = ("bf16_tflops", "fp32_tflops", "memory_gib", "memory_gb_per_s", "host_copy_gb_per_s")
        more: dict[str, float | None] = {name: getattr(self, name) * cores for name in grows}
        more |= {"value_ns": self.value_ns and self.value_ns / cores, "score_ns": self.score_ns / cores}
        return self.model_copy(update=more | {"gpus_per_node": self.gpus_per_node // cores, "cores_per_gpu": cores})


@dataclass(frozen=True)
class Machine:
    """What a plan is made for; `mtbf_h` is the mean time between failures of a node in hours, if these matter."""

    name: str
    hardware: Hardware
    mtbf_h: float | None = None
