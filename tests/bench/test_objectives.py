from __future__ import annotations

import pytest

from pipeline.bench.objectives import measure
from pipeline.bench.tasks import TASKS, known_tasks, task_settings
from pipeline.config.task import task_class, task_types
from pipeline.errors import ConfigError


def test_both_loops_do_the_same() -> None:
    """The bare loop matches the engine for a loss over the whole batch, a moving teacher, and views of two sizes."""
    found = measure(["simdino"], ["nano"], batch_size=4, precision="fp32", threads=1, rounds=2)["nano"]["simdino"]
    assert found["steps_apart"] < 0.02
    assert found["batch_size"] == 4
    for loop in ("ours", "bare_loop"):
        assert found[loop]["images_per_s"] == pytest.approx(4 / found[loop]["step_s"])
    assert 0 < found["cpu_ratio"] < 3


def test_tasks_are_known_by_name() -> None:
    assert set(TASKS) <= set(task_types())
    assert known_tasks([]) == list(TASKS)
    with pytest.raises(ConfigError, match="--task: found 'simdin', did you mean 'simdino'"):
        known_tasks(["simdin"])


@pytest.mark.parametrize("name", TASKS)
def test_settings_are_valid_at_any_size(name: str, tmp_path: object) -> None:
    for side, patch in ((16, 4), (28, 4), (224, 16)):
        task = task_class(name).model_validate(task_settings(name, side, patch, tmp_path))
        for group in task.view_groups().values():
            assert all(pixels % patch == 0 for pixels in group.size or ())
