from __future__ import annotations

import os

import pytest

from pipeline.cluster.environment import shared_with_ranks, take_environment

SHARED = {
    "AWS_SECRET_ACCESS_KEY": "secret",
    "FSSPEC_S3_ENDPOINT_URL": "http://store",
    "GLOO_SOCKET_IFNAME": "eth1",
    "HF_HOME": "/cache",
    "NCCL_IB_HCA": "mlx5",
    "OMP_NUM_THREADS": "4",
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
    "CUDA_LAUNCH_BLOCKING": "1",
    "TORCH_EXTENSIONS_DIR": "/ext",
    "https_proxy": "http://proxy",
    "NO_PROXY": "store",
    "REQUESTS_CA_BUNDLE": "/ca.pem",
}
OF_THIS_MACHINE = {"CUDA_VISIBLE_DEVICES": "3", "HOME": "/home/me", "PATH": "/bin", "PYTHONPATH": "lib", "TMPDIR": "/t"}
OF_A_LAUNCHER = {
    "RANK": "3",
    "LOCAL_RANK": "3",
    "WORLD_SIZE": "8",
    "LOCAL_WORLD_SIZE": "8",
    "MASTER_ADDR": "elsewhere",
    "MASTER_PORT": "1",
    "OMPI_COMM_WORLD_LOCAL_RANK": "3",
    "PMI_RANK": "3",
    "PMIX_RANK": "3",
    "MV2_COMM_WORLD_RANK": "3",
    "MPI_LOCALRANKID": "3",
    "SLURM_PROCID": "3",
    "TORCHELASTIC_RUN_ID": "x",
}


def test_settings_of_network_stores_and_libraries_are_shared() -> None:
    assert shared_with_ranks(SHARED | OF_THIS_MACHINE | OF_A_LAUNCHER) == SHARED


def test_the_config_names_further_variables() -> None:
    assert shared_with_ranks(OF_THIS_MACHINE | {"TEAM_TOKEN": "t"}, ["TEAM_TOKEN", "TMPDIR", "UNSET"]) == {
        "TEAM_TOKEN": "t",
        "TMPDIR": "/t",
    }


def test_a_rank_takes_them_and_forgets_what_a_launcher_told_it(monkeypatch: pytest.MonkeyPatch) -> None:
    before = dict(os.environ)
    for name, value in (OF_A_LAUNCHER | {"SLURM_JOB_ID": "7", "HF_HOME": "/of the cluster"}).items():
        monkeypatch.setenv(name, value)
    for name in SHARED:
        monkeypatch.setenv(name, os.environ.get(name, ""))  # so that all is put back
    take_environment(SHARED)
    assert SHARED.items() <= os.environ.items()
    assert not OF_A_LAUNCHER.keys() & os.environ.keys()
    assert os.environ["SLURM_JOB_ID"] == "7"
    assert os.environ["PATH"] == before["PATH"]
