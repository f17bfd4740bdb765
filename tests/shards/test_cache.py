from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.shards import cache
from pipeline.shards.cache import RangeCache

SMALL_BLOCK = 1000
CONTENT = np.random.default_rng(0).integers(256, size=25_500, dtype=np.uint8).tobytes()


class Source:
    """Bytes by URL; counts the requests."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int, int]] = []

    def __call__(self, url: str, start: int, stop: int) -> bytes:
        self.asked.append((url, start, stop))
        return CONTENT[start:stop]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "BLOCK", SMALL_BLOCK)


def used(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if not path.name.startswith("."))


@given(st.lists(st.tuples(st.integers(0, 25_500), st.integers(0, 5_000)), max_size=12), st.integers(0, 30_000))
def test_any_range_is_the_files_and_the_limit_holds(
    tmp_path_factory: pytest.TempPathFactory, ranges: list[tuple[int, int]], limit: int
) -> None:
    folder = tmp_path_factory.mktemp("cache")
    kept = RangeCache(str(folder), limit, Source())
    for start, length in ranges:
        stop = min(start + length, len(CONTENT))
        assert kept.read("s3://b/a.tar", "x", len(CONTENT), start, stop) == CONTENT[start:stop]
        assert used(folder) <= limit


def test_what_was_read_is_not_fetched_again_and_other_content_is(tmp_path: Path) -> None:
    source = Source()
    for identity, url in (("x", "a"), ("x", "a"), ("y", "a"), ("x", "b")):
        RangeCache(str(tmp_path), 10**6, source).read(url, identity, len(CONTENT), 1500, 3200)
    assert [url for url, *_ in source.asked] == ["a"] * 6 + ["b"] * 3
    assert source.asked[:3] == [("a", 1000, 2000), ("a", 2000, 3000), ("a", 3000, 4000)]


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    source = Source()
    kept = RangeCache(str(tmp_path), 10 * (SMALL_BLOCK + 4), source)

    def read(block: int) -> None:
        kept.read("a", "x", len(CONTENT), block * SMALL_BLOCK, (block + 1) * SMALL_BLOCK)

    for block in range(10):
        read(block)
    for path in tmp_path.iterdir():  # as if some time had passed
        os.utime(path, ns=(0, path.stat().st_mtime_ns - 10**12))
    read(3)
    source.asked.clear()
    for block in (11, 12, 3):
        read(block)
    assert [start // SMALL_BLOCK for _, start, _ in source.asked] == [11, 12]


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: b"?" + data[1:], lambda data: b""])
def test_a_damaged_block_is_fetched_anew(tmp_path: Path, damage) -> None:
    source = Source()
    kept = RangeCache(str(tmp_path), 10**6, source)
    kept.read("a", "x", len(CONTENT), 0, 10)
    (path,) = (path for path in tmp_path.iterdir() if not path.name.startswith("."))
    path.write_bytes(damage(path.read_bytes()))
    assert kept.read("a", "x", len(CONTENT), 0, 10) == CONTENT[:10]
    assert kept.read("a", "x", len(CONTENT), 0, 10) == CONTENT[:10]
    assert len(source.asked) == 2


def test_without_a_place_to_write_it_reads_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    kept = RangeCache(str(tmp_path / "file" / "cache"), 10**6, Source())
    assert kept.read("a", "x", len(CONTENT), 0, 2000) == CONTENT[:2000]


def hammer(folder: str, seed: int) -> int:
    cache.BLOCK = SMALL_BLOCK
    kept = RangeCache(folder, 12 * SMALL_BLOCK, Source())
    rng = np.random.default_rng(seed)
    for _ in range(200):
        start = int(rng.integers(len(CONTENT)))
        stop = min(start + int(rng.integers(3000)), len(CONTENT))
        if kept.read("a", "x", len(CONTENT), start, stop) != CONTENT[start:stop]:
            return 1
    return 0


def test_processes_share_a_folder(tmp_path: Path) -> None:
    with multiprocessing.get_context("fork").Pool(4) as pool:
        assert pool.starmap(hammer, [(str(tmp_path), seed) for seed in range(4)]) == [0] * 4
    assert used(tmp_path) <= 12 * SMALL_BLOCK
