from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.utils.validation import MAX_ENTITY_KEY_LENGTH, _validate_metric_name, _validate_param_name

from pipeline.tracking.names import MAX_LENGTH, TAG_PREFIX, mlflow_name

NAMES = st.text(st.sampled_from("ab/.._- :@'(\\n日\ud800"), max_size=12) | st.text(max_size=400)


@pytest.mark.parametrize(
    "name", ["train/loss", "optimizer.lr", "samples/tea cup", "class/日本", "a:b", "x" * MAX_LENGTH]
)
def test_what_mlflow_takes_stays(name: str) -> None:
    assert mlflow_name(name) == name


@given(NAMES)
def test_mlflow_takes_every_name(name: str) -> None:
    found = mlflow_name(name)
    _validate_metric_name(found)
    _validate_param_name(found)
    assert "\n" not in found
    assert len(TAG_PREFIX + found) <= MAX_ENTITY_KEY_LENGTH
    assert mlflow_name(found) == found


@given(st.lists(NAMES, unique=True, max_size=30))
def test_no_two_names_become_one(names: list[str]) -> None:
    assert len({mlflow_name(name) for name in names}) == len(names)


def test_a_changed_name_is_like_it_was() -> None:
    assert mlflow_name("samples/b@224").startswith("samples/b_224-")
    assert mlflow_name("../x//y").startswith("x/y-")
