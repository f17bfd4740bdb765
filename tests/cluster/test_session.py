from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from pipeline.cluster.session import Cluster, connect, no_answer, require_answer
from pipeline.config.schema import ClusterConfig, ResourcesConfig
from pipeline.errors import ClusterError


@pytest.fixture
def port() -> Iterator[int]:
    """A port that takes connections."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.parametrize(
    ("workers", "cpus", "gpus", "fits"),
    [(2, 2, 0, True), (4, 1, 0, True), (2, 3, 0, False), (5, 1, 0, False), (1, 1, 1, True), (2, 1, 1, False)],
)
def test_a_stage_must_fit_as_a_whole(workers: int, cpus: int, gpus: int, fits: bool) -> None:
    cluster = Cluster("this machine", cpus=4, gpus=1)
    resources = ResourcesConfig(workers=workers, cpus_per_worker=cpus, gpus_per_worker=gpus)
    if fits:
        cluster.require(resources, "pretrain")
    else:
        kind, each = ("CPU", cpus) if cpus * workers > 4 else ("GPU", gpus)
        expected = (
            rf"^stages\.pretrain: {workers} workers with {each} {kind}s each need {workers * each} {kind}s, the "
            rf"cluster at this machine has {4 if kind == 'CPU' else 1}; lower cluster\.workers or add nodes$"
        )
        with pytest.raises(ClusterError, match=expected):
            cluster.require(resources, "pretrain")


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}"])
def test_an_address_that_listens_is_taken(form: str, port: int) -> None:
    require_answer(form.format(port))


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}"])
def test_an_address_where_nobody_listens_is_refused_at_once(form: str, closed_port: int) -> None:
    address = form.format(closed_port)
    began = time.monotonic()
    expected = rf"^cluster\.address: no Ray cluster answers at {address} \(.*refused"
    with pytest.raises(ClusterError, match=expected), connect(ClusterConfig(address=address)):
        pass
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("address", ["127.0.0.1:99999", "no-such-host.invalid:6379"])
def test_an_impossible_address_is_refused(address: str) -> None:
    with pytest.raises(ClusterError, match=f"no Ray cluster answers at {address}"):
        require_answer(address)


@pytest.mark.parametrize("address", ["auto", "local"])
def test_other_forms_are_left_to_ray(address: str) -> None:
    require_answer(address)


def test_the_reason_is_one_line() -> None:
    error = no_answer("host:1", RuntimeError("Failed to connect to GCS. Last connection error: Traceback\n  File"))
    assert "answers at host:1 (Failed to connect to GCS); start one" in str(error)
    assert "(ValueError)" in str(no_answer("host:1", ValueError()))
