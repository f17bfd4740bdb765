"""The hardware that `--hardware` names: a table of published figures, this machine's CPU, or a YAML file."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import ValidationError

from pipeline.config.fields import Setting, allowed, show
from pipeline.config.messages import sentences
from pipeline.config.yaml_text import read_yaml
from pipeline.errors import ConfigError
from pipeline.forecast.hardware import Hardware
from pipeline.forecast.this_cpu import this_cpu

KNOWN = {
    "h100": Hardware(
        source="NVIDIA, data sheets of H100 SXM and DGX H100",
        bf16_tflops=989.5,
        fp32_tflops=494.5,
        memory_gib=80,
        memory_gb_per_s=3350,
        link_gb_per_s=450,
        network_gb_per_s=50,
        gpus_per_node=8,
        cores_per_gpu=14,
    ),
    "a100": Hardware(
        source="NVIDIA, data sheets of A100 80GB SXM and DGX A100",
        bf16_tflops=312,
        fp32_tflops=156,
        memory_gib=80,
        memory_gb_per_s=2039,
        link_gb_per_s=300,
        network_gb_per_s=25,
        gpus_per_node=8,
        cores_per_gpu=16,
    ),
    "l40s": Hardware(
        source="NVIDIA, data sheet of L40S; Amazon EC2, g6e.48xlarge",
        bf16_tflops=362.05,
        fp32_tflops=183,
        memory_gib=48,
        memory_gb_per_s=864,
        link_gb_per_s=32,
        network_gb_per_s=6.25,
        gpus_per_node=8,
        cores_per_gpu=12,
    ),
    "mi300x": Hardware(
        source="AMD, data sheet of MI300X; Microsoft Azure, ND MI300X v5",
        bf16_tflops=1307.4,
        fp32_tflops=163.4,
        memory_gib=192,
        memory_gb_per_s=5300,
        link_gb_per_s=448,
        network_gb_per_s=50,
        gpus_per_node=8,
        cores_per_gpu=12,
    ),
}
CPU = "cpu"


def find_hardware(named: str) -> Hardware:
    """The hardware with a name in the table, that of this machine's CPU, or that described by a YAML file.

    Raises ConfigError for an unknown name, and for a file with missing, unknown or invalid fields.
    """
    if named == CPU:
        return this_cpu()
    if named in KNOWN:
        return KNOWN[named]
    if not Path(named).is_file():
        names = allowed(named, [*KNOWN, CPU])
        raise ConfigError(f"--hardware: found {show(named)}, which is neither a known name nor a file; {names}")
    raw = read_yaml(Path(named))
    if not isinstance(raw, dict):
        raise ConfigError(f"{named}: found {show(raw)}, expected a mapping with the fields {_fields()}")
    try:
        return Hardware.model_validate_json(json.dumps(raw, default=str), strict=True)
    except ValidationError as error:
        faults = sentences(error, raw, Setting.of(Hardware))
        raise ConfigError("\n".join(f"{named}: {fault}" for fault in faults)) from None


def _fields() -> str:
    return ", ".join(name for name, field in Hardware.model_fields.items() if field.is_required())
