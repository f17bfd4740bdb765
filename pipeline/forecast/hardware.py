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
    """A kind of node. Published figures are peaks, bandwidths count one direction; the rest are assumptions.

    On a node without GPUs, each CPU core, or each rank's group of cores, counts as a GPU.
    """

    source: str = Field(default="the file", description="where the published figures come from")
    bf16_tflops: Amount = Field(description="peak of a GPU for dense bf16 matrix products")
    fp32_tflops: Amount = Field(description="peak for matrix products of fp32 tensors, in TF32 if the GPU has it")
    memory_gib: Amount = Field(description="of a GPU")
    memory_gb_per_s: Amount = Field(description="of a GPU")
    link_gb_per_s: Amount = Field(description="of a GPU to the others of its node (NVLink, xGMI, PCIe)")
    network_gb_per_s: Amount = Field(description="of a GPU's share of its node's network cards")
    gpus_per_node: Positive
    cores_per_gpu: Positive = Field(description="CPU cores of a node per GPU")
    achieved_flops: Part = Field(default=0.5, description="share of the peak that matrix products reach")
    achieved_bandwidth: Part = Field(default=0.8, description="share of link and network that collectives reach")
    latency_us: Amount = Field(default=10.0, description="of one hop of a collective")
    layer_us: Annotated[float, Field(ge=0)] = Field(
        default=400.0, description="time in which the host launches a layer's kernels, forward and backward"
    )
    value_ns: Amount | None = Field(
        default=None,
        description="time of norms, softmax and activations per value kept for the backward pass; default: that of six "
        "passes over memory",
    )
    score_ns: Annotated[float, Field(ge=0)] = Field(
        default=0.0,
        description="time per attention score besides the matrix products; 0 for fused attention",
    )
    overlaps: bool = Field(default=True, description="whether gradients are reduced during the backward pass")
    shares_cores: bool = Field(default=False, description="whether loader workers and training share the cores")
    storage_gb_per_s: Amount = Field(default=2.0, description="of a node, reading or writing")
    host_copy_gb_per_s: Amount = Field(default=20.0, description="of a GPU to its host's memory")
    overhead_gib: Annotated[float, Field(ge=0)] = Field(
        default=2.0, description="memory of a rank for libraries, communication and fragmentation"
    )

    def peak_flops(self, width: int) -> float:
        """Achieved FLOP/s of matrix products whose values have `width` bytes."""
        return 1e12 * self.achieved_flops * (self.fp32_tflops if width == FP32 else self.bf16_tflops)

    @property
    def memory_bytes(self) -> int:
        return int(self.memory_gib * 2**30)

    def joined(self, cores: int) -> Hardware:
        """The same node without GPUs, with `cores` cores (at most all) per rank."""
        cores = min(cores, self.gpus_per_node)
        grows = ("bf16_tflops", "fp32_tflops", "memory_gib", "memory_gb_per_s", "host_copy_gb_per_s")
        more: dict[str, float | None] = {name: getattr(self, name) * cores for name in grows}
        more |= {"value_ns": self.value_ns and self.value_ns / cores, "score_ns": self.score_ns / cores}
        return self.model_copy(update=more | {"gpus_per_node": self.gpus_per_node // cores, "cores_per_gpu": cores})


@dataclass(frozen=True)
class Machine:
    """The machine to plan for; `mtbf_h` is a node's mean time between failures in hours, None to ignore failures."""

    name: str
    hardware: Hardware
    mtbf_h: float | None = None
