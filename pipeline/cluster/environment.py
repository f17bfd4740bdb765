"""Environment variables that ranks take from the driver, and inherited ones to drop because they mislead ranks."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping

from pipeline.errors import ConfigError

# Settings of the network, stores, caches and numerical libraries, missing in a Ray cluster started before the run.
SHARED_PREFIXES = (
    *("AWS_", "AZURE_", "FSSPEC_", "GOOGLE_", "HF_", "S3_"),
    *("CUBLAS_", "CUDA_", "CUDNN_", "DS_", "KMP_", "MKL_", "OMP_", "PYTORCH_", "TORCH_", "TORCHINDUCTOR_", "TRITON_"),
    *("FI_", "GLOO_", "NCCL_", "UCX_"),
)
PROXIES = ("all_proxy", "http_proxy", "https_proxy", "no_proxy")
CERTIFICATES = ("CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_DIR", "SSL_CERT_FILE")
SHARED_NAMES = {*PROXIES, *(name.upper() for name in PROXIES), *CERTIFICATES}
# Ray assigns these on each node; the driver's value refers to another machine's devices.
NOT_SHARED = {"CUDA_VISIBLE_DEVICES"}

# Set by launchers (torchrun, MPI, SLURM) for their own processes; DeepSpeed and NCCL's plugins would take them for
# ours: under `mpirun ray start`, every rank would be rank 0.
LAUNCHER_PREFIXES = ("MPI_LOCAL", "MV2_COMM_WORLD_", "OMPI_", "PMIX_", "PMI_", "TORCHELASTIC_")
LAUNCHER_NAMES = {
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "LOCAL_WORLD_SIZE", "NODE_RANK", "CROSS_RANK", "CROSS_SIZE"),
    *("GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_NAME", "ROLE_RANK", "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    *("SLURM_LOCALID", "SLURM_NODEID", "SLURM_NTASKS", "SLURM_PROCID"),
}


def shared_with_ranks(environment: Mapping[str, str], also: Collection[str] = ()) -> dict[str, str]:
    """The part of the driver's environment that every rank needs, and the variables that the config names."""
    return {
        name: value
        for name, value in environment.items()
        if ((name.startswith(SHARED_PREFIXES) or name in SHARED_NAMES) and name not in NOT_SHARED) or name in also
    }


def unset(names: Collection[str], environment: Mapping[str, str], setting: str) -> list[ConfigError]:
    """One error for each of the variables that a setting names and the driver's environment lacks."""
    return [
        ConfigError(f"{setting}: {name} is not set where you started the run; set it there, or remove it from the list")
        for name in names
        if name not in environment
    ]


def take_environment(shared: Mapping[str, str]) -> None:
    """Apply the driver's settings to this process, a rank, and drop what a launcher has set."""
    for name in list(os.environ):
        if name.startswith(LAUNCHER_PREFIXES) or name in LAUNCHER_NAMES:
            del os.environ[name]
    os.environ |= shared
