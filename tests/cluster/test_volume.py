from __future__ import annotations

from typing import Any

import pytest

from pipeline.cluster.volume import expected_data, password_in, path_faults


def config(**changes: Any) -> dict[str, Any]:
    raw: dict[str, Any] = {
        "name": "x",
        "datasets": {"train": {"shards": "data/train-*.tar"}},
        "stages": {"pretrain": {"type": "pretrain"}, "report": {"type": "report"}},
    }
    return raw | changes


@pytest.mark.parametrize(
    "path", ["data/a-*.tar", "./data", "/workspace/data", "s3://bucket/a.tar", "gs://b", "$DATA/a.tar", "a/../b"]
)
def test_paths_on_the_volume_and_urls_pass(path: str) -> None:
    assert not list(path_faults(config(datasets={"train": {"shards": path}}, runs_dir=path)))


@pytest.mark.parametrize(
    "path", ["/data/a.tar", "../data", "~/data", "/workspace2/a", "/workspace/../etc", "data/../../a"]
)
def test_paths_elsewhere_are_named_with_their_setting(path: str) -> None:
    raw = config(
        datasets={"train": {"shards": path}},
        runs_dir=path,
        stages={"fine": {"init_from": path if path[0] in "./~" else f"./{path}", "checkpoint": {"storage": path}}},
    )
    found = list(path_faults(raw))
    settings = ["runs_dir", "datasets.train.shards", "stages.fine.checkpoint.storage", "stages.fine.init_from"]
    assert [fault.partition(":")[0] for fault in found] == settings
    assert found[1].startswith(
        f"datasets.train.shards: found {path!r}, which is not on the volume that the pods share;"
    )


def test_mlflows_file_is_on_the_volume_too() -> None:
    assert not list(path_faults(config(tracking={"uri": "sqlite:///runs/mlflow.db"})))
    assert list(path_faults(config(tracking={"uri": "sqlite:////var/mlflow.db"})))


def test_names_of_stages_and_timm_are_no_paths() -> None:
    assert not list(path_faults(config(stages={"a": {"init_from": "pretrain/nano"}, "b": {"init_from": "timm:vit"}})))


def test_data_that_the_run_does_not_make_is_expected() -> None:
    datasets = {
        "mine": {"shards": "data/mine"},
        "made": {"shards": "data/made", "make": "fashion-mnist"},
        "far": {"shards": "s3://b"},
    }
    assert expected_data(config(datasets=datasets)) == ["data/mine (datasets.mine.shards)"]


@pytest.mark.parametrize(
    ("uri", "found"),
    [
        ("https://me:secret@host", True),
        ("https://token@host", True),
        ("https://me:$PASSWORD@host", False),
        ("https://$TOKEN@host", False),
        ("https://host", False),
        (None, False),
    ],
)
def test_a_password_that_is_spelt_out_is_found(uri: str | None, found: bool) -> None:
    assert password_in(config(tracking={"uri": uri})) == found
    assert not password_in(config())
