"""The loader over a store whose connection keeps breaking, with and without a local cache."""

from __future__ import annotations

import random
from itertools import islice
from pathlib import Path

import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from pipeline.config.data import CacheConfig, DatasetConfig
from pipeline.shards import cache, remote, store
from pipeline.shards.index_file import load_index


@pytest.fixture
def broken(uneven, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """`memory://data` holds the shards; every fifth read breaks, and the others give at most 700 bytes."""
    for path in Path(uneven.url).iterdir():
        if path.is_file():
            store.write_bytes(f"memory://data/{path.name}", path.read_bytes())
    monkeypatch.setattr(remote, "BACKOFF_S", 0.0001)
    asked: list[tuple[int, int]] = []
    real, chance = MemoryFileSystem.cat_file, random.Random(0)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **settings: object) -> bytes:
        if start is None:  # the index, in one piece
            return real(self, path, **settings)
        asked.append((start, end))
        if chance.random() < 0.2:
            raise ConnectionResetError("cut")
        return real(self, path, start=start, end=min(end, start + 700), **settings)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)
    return asked


def batches(kit, index, settings: dict, steps: int) -> list:
    with kit.train_loader([kit.source(index, config=DatasetConfig(shards="unused", **settings))]) as loader:
        return list(islice(loader, steps))


def same(ours: list, theirs: list) -> bool:
    return all(
        a.keys == b.keys and torch.equal(a.views["image"], b.views["image"]) for a, b in zip(ours, theirs, strict=True)
    )


def test_a_stream_over_a_bad_connection_is_the_local_one(kit, uneven, broken) -> None:
    local = batches(kit, uneven, {}, 12)
    assert same(batches(kit, load_index("memory://data", check=False), {}, 12), local)
    assert len(broken) > 50


def test_a_second_run_reads_from_the_cache(kit, uneven, broken, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "BLOCK", 4096)
    settings = {"cache": CacheConfig(folder=str(tmp_path / "cache"), max_gigabytes=0.1)}
    index = load_index("memory://data", check=False)
    local = batches(kit, uneven, {}, 20)  # two epochs
    assert same(batches(kit, index, settings, 20), local)
    broken.clear()
    assert same(batches(kit, index, settings, 20), local)
    assert broken == []


def test_local_shards_are_not_copied(kit, uneven, tmp_path) -> None:
    batches(kit, uneven, {"cache": CacheConfig(folder=str(tmp_path / "cache"), max_gigabytes=0.1)}, 3)
    assert not (tmp_path / "cache").exists()
