from __future__ import annotations

import pytest

from pipeline.cluster.leave import is_rank, is_run, leave
from pipeline.errors import ClusterError


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["/opt/venv/bin/python", "/opt/venv/bin/minivit", "run", "/etc/minivit/pipeline.yaml"], True),
        (["/bin/sh", "-c", "minivit run /etc/minivit/pipeline.yaml"], False),  # the shell that waits for it
        (["python", "/opt/venv/bin/minivit", "plan", "run"], False),
        (["ray::RayTrainWorker"], False),
    ],
)
def test_the_run_is_told_from_the_shell_that_started_it(command: list[str], expected: bool) -> None:
    assert is_run(command) is expected


def test_ranks_are_known_by_their_names() -> None:
    assert is_rank(["ray::RayTrainWorker.execute"])
    assert not is_rank(["ray::IDLE"])


def test_outside_of_a_container_nothing_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MINIVIT_IN_CONTAINER", raising=False)
    with pytest.raises(ClusterError, match=r"^MINIVIT_IN_CONTAINER is not set"):
        leave(0)
