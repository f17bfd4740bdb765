from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from pipeline.cluster.rank import RanksBackend, bound_device, memory_ran_out, name_node, reach_rank_0, take_device
from pipeline.errors import ClusterError, DataError, WorkersLost


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Restores the environment afterwards."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_a_rank_that_asked_for_no_gpu_computes_on_none_that_it_can_see(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(os.environ["CUDA_VISIBLE_DEVICES"]))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert take_device(1, 0) == torch.device("cpu")
    assert torch.get_num_threads() == 1


def test_a_rank_whose_gpu_cannot_be_used_does_not_fall_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ClusterError, match=r"^cluster\.gpus_per_worker: this rank was granted a GPU that PyTorch"):
        take_device(1, 1)


def test_ranks_see_each_others_gpus() -> None:
    """NCCL copies from one to the other."""
    assert RanksBackend.share_cuda_visible_devices


@pytest.mark.parametrize(
    ("device", "world_size", "bound"), [("cuda:1", 2, True), ("cuda:0", 1, False), ("cpu", 2, False)]
)
def test_ranks_with_others_are_bound_to_their_gpus(device: str, world_size: int, bound: bool) -> None:
    assert bound_device(torch.device(device), world_size) == (torch.device(device) if bound else None)


def test_a_gpu_that_is_too_small_is_no_lost_rank() -> None:
    said = (
        "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.11 GiB of which 9.69 MiB is "
        "free. Process 7 has 79.09 GiB memory in use.\nSee documentation"
    )
    told = memory_ran_out(torch.OutOfMemoryError(said), Path("runs/quick/stages/pretrain/micro"))
    assert isinstance(told, ClusterError)
    assert not isinstance(told, WorkersLost)
    assert str(told).startswith(
        "pretrain/micro: a GPU ran out of memory (CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total "
        "capacity of 79.11 GiB of which 9.69 MiB is free); lower micro_batch_size"
    )
    assert memory_ran_out(RuntimeError("NCCL error"), Path("pretrain")) is None


def test_signals_that_were_blocked_stay_blocked() -> None:
    program = (
        "import signal; from pipeline.cluster.rank import start_resource_tracker; "
        "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM}); start_resource_tracker(); "
        "from multiprocessing.shared_memory import SharedMemory; SharedMemory(create=True, size=8).unlink(); "
        "print(signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, ()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


def test_a_node_without_the_data_is_named() -> None:
    error = DataError("/data/train-000000.tar: no such file")
    name_node(error)
    assert str(error) == f"/data/train-000000.tar: no such file (on node {socket.gethostname()})"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that never answers, like one behind a firewall that drops packets, because its backlog is full."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(3):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.parametrize(("kind", "reason"), [("silent_port", "timed out"), ("closed_port", ".*refused")])
def test_a_rank_0_that_cannot_be_reached_is_named_with_address_and_port(
    kind: str, reason: str, request: pytest.FixtureRequest
) -> None:
    port, began = request.getfixturevalue(kind), time.monotonic()
    expected = (
        rf"^rank 3, on {socket.gethostname()}, could not reach rank 0 at 127\.0\.0\.1:{port} within 1 s \({reason}\); "
    )
    with pytest.raises(WorkersLost, match=expected):
        reach_rank_0(3, "127.0.0.1", port, timeout_s=1.0)
    assert time.monotonic() - began < 30


def test_a_rank_0_that_listens_is_reached() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        reach_rank_0(1, *listener.getsockname())


def test_a_rank_leaves_no_socket_folder_behind() -> None:
    """Ray ends a rank by `os._exit`, which skips the handlers that would remove it."""
    rank = (
        "import multiprocessing.forkserver, os, sys\n"
        "multiprocessing.forkserver.ensure_running()\n"
        "made = os.listdir(os.environ['TMPDIR'])\n"
        "if sys.argv[1] == 'removed':\n"
        "    from pipeline.cluster.rank import remove_socket_folder\n"
        "    remove_socket_folder()\n"
        "sys.stdout.write(' '.join(made))\n"
        "sys.stdout.flush()\n"
        "os._exit(0)\n"
    )
    for ending, left in ("left", 1), ("removed", 0):
        with tempfile.TemporaryDirectory() as folder:  # short: a socket's path has at most 107 characters
            done = subprocess.run(
                [sys.executable, "-c", rank, ending],
                env=os.environ | {"TMPDIR": folder},
                capture_output=True,
                text=True,
                check=True,
            )
            assert done.stdout.startswith("pymp-")
            assert len(list(Path(folder).iterdir())) == left
