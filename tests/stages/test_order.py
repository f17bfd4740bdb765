"""`stage_order` runs the real loaders, for every split of a stage among ranks and workers."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.config.load import parse_config
from pipeline.errors import ConfigError, DataError
from pipeline.shards.build import build_index
from pipeline.shards.write import TarWriter
from pipeline.stages.order import stage_order

CLASSES = {"photos": ["cat", "dog", "bird"], "sketches": ["dog", "house"]}
PIPELINE: dict[str, Any] = {
    "name": "p",
    "datasets": {
        name: {"shards": f"{name}-*.tar", "classes": classes, "mean": [0.5], "std": [0.5]}
        for name, classes in CLASSES.items()
    },
    "stages": {
        "pretrain": {
            "type": "pretrain",
            "model": {"variant": ["nano", "micro"], "image_size": 8, "channels": 1, "patch_size": 4},
            "data": {"train": "photos", "lanes": 8, "window": 5, "augment": {"crop": "none"}},
            "duration": "3 epochs",
            "global_batch_size": 16,
        }
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    file = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(file, "PNG")
    for name, sizes in {"photos": [30, 0, 1, 40], "sketches": [25, 9]}.items():
        for number, size in enumerate(sizes):
            with TarWriter(folder / f"{name}-{number}.tar") as tar:
                for i in range(size):
                    label = str(i % len(CLASSES[name])).encode()
                    tar.write(f"{name[0]}{number}x{i}", {"png": file.getvalue(), "cls": label})
                tar.finish()
    build_index(str(folder), workers=1)
    return folder


@pytest.fixture
def raw(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(folder)
    return copy.deepcopy(PIPELINE)


def listed(raw: dict[str, Any], **settings: Any) -> list[dict[str, Any]]:
    defaults = {"world_size": 1, "loader_workers": 0, "first_slot": 0, "num_slots": 100}
    return stage_order(parse_config(raw, "c"), settings.pop("stage", "pretrain"), **{**defaults, **settings})


def samples(rows: list[dict[str, Any]]) -> list[tuple[int, str, str]]:
    return [(row["slot"], row["shard"], row["key"]) for row in rows]


@pytest.mark.parametrize(("world_size", "loader_workers"), [(1, 2), (3, 0), (5, 1)])
def test_ranks_and_loader_workers_change_nothing_but_the_rank(
    raw: dict[str, Any], world_size: int, loader_workers: int
) -> None:
    alone, split = listed(raw), listed(raw, world_size=world_size, loader_workers=loader_workers)
    assert samples(split) == samples(alone)
    assert [row["slot"] for row in split] == list(range(100))
    assert [row["rank"] for row in split] == [row["slot"] % 8 % world_size for row in split]
    assert len({(row["shard"], row["key"]) for row in alone[:64]}) == 64


def test_from_any_slot_it_is_the_tail(raw: dict[str, Any]) -> None:
    whole = samples(listed(raw, num_slots=150))
    for first in (16, 21, 99):
        assert samples(listed(raw, world_size=2, first_slot=first, num_slots=150 - first)) == whole[first:]


def test_branches_have_orders_of_their_own(raw: dict[str, Any]) -> None:
    first, second = (samples(listed(raw, stage=f"pretrain/{variant}")) for variant in ("nano", "micro"))
    assert first == samples(listed(raw))
    assert first != second


def test_a_mixture_says_which_data_set(raw: dict[str, Any]) -> None:
    data = raw["stages"]["pretrain"]["data"]
    data["mixture"] = {"photos": {"weight": 0.75}, "sketches": {"weight": 0.25}}
    del data["train"]
    rows = listed(raw, num_slots=200)
    for start in range(0, 200, 4):
        assert sorted(row["dataset"] for row in rows[start : start + 4]) == ["photos"] * 3 + ["sketches"]
    assert all(row["shard"].startswith(row["dataset"]) for row in rows)
    assert samples(listed(raw, world_size=3, loader_workers=1, first_slot=50, num_slots=150)) == samples(rows)[50:]


def test_what_cannot_be_listed_is_one_sentence(raw: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"--stage: found 'pretrian', .* did you mean 'pretrain'"):
        listed(raw, stage="pretrian")
    with pytest.raises(DataError, match="cannot be split among 9 ranks"):
        listed(raw, world_size=9)
