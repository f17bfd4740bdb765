from __future__ import annotations

import threading
from collections.abc import Generator

import pytest

from pipeline.stream.prefetch import Prefetcher


def test_items_come_in_order_and_end() -> None:
    assert list(Prefetcher(number for number in range(20))) == list(range(20))


def test_it_runs_ahead_by_the_depth_and_no_further() -> None:
    made = []
    reached = threading.Event()

    def source() -> Generator[int, None, None]:
        for number in range(100):
            made.append(number)
            if number == 2:
                reached.set()
            yield number

    with Prefetcher(source(), depth=3) as items:
        assert reached.wait(10)
        assert len(made) == 3
        assert next(items) == 0


def test_an_exception_comes_where_its_item_would_have() -> None:
    def source() -> Generator[int, None, None]:
        yield 1
        raise KeyError("mine")

    items = Prefetcher(source())
    assert next(items) == 1
    with pytest.raises(KeyError, match="mine"):
        next(items)


def test_close_closes_the_source_in_its_thread() -> None:
    closed_in = []

    def source() -> Generator[int, None, None]:
        try:
            while True:
                yield 1
        finally:
            closed_in.append(threading.current_thread().name)

    items = Prefetcher(source())
    next(items)
    items.close()
    assert closed_in == ["prefetch"]
    with pytest.raises(StopIteration):
        next(items)
