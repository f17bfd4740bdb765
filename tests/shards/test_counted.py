from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import DataError
from pipeline.shards.build import build_index
from pipeline.shards.counted import index_by_counts
from pipeline.shards.index import LISTING, load_offsets
from pipeline.shards.index_file import load_index
from pipeline.shards.verify import verify_shards
from pipeline.stream.order import Order, share_of_step
from pipeline.stream.read import SampleReader, WindowReader

COUNTS = {"train-000000.tar": 5, "train-000001.tar": 0, "train-000002.tar": 3}  # of the folder's tars


def count(folder: Path, counts: dict[str, int]) -> None:
    """Write counts as img2dataset does."""
    for name, number in counts.items():
        (folder / f"{Path(name).stem}_stats.json").write_text(json.dumps({"count": 100, "successes": number}))


@pytest.fixture
def counted(folder: Path) -> Path:
    count(folder, COUNTS)
    return folder


def contents(folder: str) -> list[tuple[str, dict[str, bytes]]]:
    """All samples, read as training reads them, in reverse."""
    index = load_index(folder)
    shards = np.repeat(np.arange(len(index.names)), index.counts)[::-1]
    samples = np.concatenate([np.arange(count) for count in index.counts])[::-1]
    raw = SampleReader(index).read(shards, samples)
    found = [raw.members(number) for number in range(len(raw))]
    return [(key, {name: bytes(data) for name, data in members.items()}) for key, members in found]


def test_no_shard_is_read_and_each_sample_is_the_one_that_a_full_index_gives(counted: Path) -> None:
    index = index_by_counts(str(counted), classes=[str(label) for label in range(10)])
    assert not list(counted.glob("*.idx"))
    loaded = load_index(str(counted))
    assert (loaded.hash_of, loaded.digest, loaded.names) == (LISTING, index.digest, list(COUNTS))
    assert loaded.counts.tolist() == list(COUNTS.values())
    assert (loaded.members, loaded.keys.image_key) == ({"class_id": ("cls",)}, index.keys.image_key)
    early = contents(str(counted))
    assert len(list(counted.glob("*.idx"))) == 2  # an empty shard is never read
    kept = [load_offsets(shard).tolist() for shard in loaded.shards]
    full = build_index(str(counted), workers=1)
    assert full.hash_of != LISTING
    assert full.counts.tolist() == loaded.counts.tolist()
    assert [load_offsets(shard).tolist() for shard in full.shards] == kept
    assert contents(str(counted)) == early


Row = tuple[int, int, str, str, dict[str, bytes]]  # slot, rank, shard, key, members


def stream(folder: Path, slots: range, world_size: int, lanes: int, window: int, seed: int) -> list[Row]:
    """What each slot holds and which rank reads it, read in windows as training does."""
    index = load_index(str(folder))
    order = Order(index.counts, lanes=lanes, window=window, seed=seed)
    windows = WindowReader([SampleReader(index)], [order])
    rows: list[Row] = []
    for rank in range(world_size):
        for slot in share_of_step(slots.start, len(slots), lanes, rank=rank, world_size=world_size).tolist():
            turn, lane = divmod(slot, lanes)
            epoch, lane, number, offset, length = map(int, order.place(lane, turn))
            raw = windows.get((0, epoch, lane, number), offset, length)
            key, members = raw.members(offset)
            shard, _ = raw.where(offset)
            rows.append((slot, rank, shard, key, {name: bytes(data) for name, data in members.items()}))
    windows.close()
    return rows


@settings(deadline=None, max_examples=15)
@given(sizes=st.lists(st.integers(0, 6), min_size=1, max_size=4).filter(any), data=st.data())
def test_each_slot_has_the_same_bytes_by_either_index(
    tmp_path_factory: pytest.TempPathFactory,
    samples: Callable,
    write_tar: Callable,
    sizes: list[int],
    data: st.DataObject,
) -> None:
    folder, total = tmp_path_factory.mktemp("either"), sum(sizes)
    for number, size in enumerate(sizes):
        write_tar(folder / f"train-{number:06d}.tar", samples(size, first=sum(sizes[:number])))
    lanes = data.draw(st.integers(1, min(total, 6)), "lanes")
    first = data.draw(st.integers(0, 2 * total), "first slot")
    world_size = data.draw(st.integers(1, lanes), "world size")
    window, seed = data.draw(st.integers(1, 8), "window"), data.draw(st.integers(0, 2**63), "seed")
    asked = range(first, first + 2 * total), world_size, lanes, window, seed
    count(folder, {f"train-{number:06d}.tar": size for number, size in enumerate(sizes)})
    counted = index_by_counts(str(folder))
    early = stream(folder, *asked)
    assert counted.hash_of == LISTING
    assert stream(folder, *asked) == early
    for path in [folder / "index.json", *folder.glob("*.idx")]:
        path.unlink()
    assert build_index(str(folder), workers=1).hash_of != LISTING
    assert stream(folder, *asked) == early
    assert sorted(slot for slot, *_ in early) == list(asked[0])


def test_the_second_reader_finds_the_sidecar(counted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = index_by_counts(str(counted))
    first = load_offsets(index.shards[0])
    monkeypatch.setattr("pipeline.shards.index.first_offsets", lambda *_: pytest.fail("scanned again"))
    assert np.array_equal(load_offsets(index.shards[0]), first)


def test_more_shards_join_it(counted: Path, samples: Callable, write_tar: Callable) -> None:
    index_by_counts(str(counted / "train-{000000..000001}.tar"))
    assert index_by_counts(str(counted / "train-000002.tar")).num_samples == 3
    assert load_index(str(counted)).num_samples == 8


def test_an_index_by_content_is_not_replaced(counted: Path) -> None:
    build_index(str(counted), workers=1)
    with pytest.raises(DataError, match="describes these shards by their content"):
        index_by_counts(str(counted))


def test_verifying_compares_what_the_index_knows(counted: Path, samples: Callable, write_tar: Callable) -> None:
    index_by_counts(str(counted))
    assert not [
        fault for fault in verify_shards(str(counted), decode_images=False, workers=1) if "samples" in fault.message
    ]
    count(counted, COUNTS | {"train-000002.tar": 4})
    index_by_counts(str(counted))
    messages = [fault.message for fault in verify_shards(str(counted), decode_images=False, workers=1)]
    assert "3 samples, but 4 in the index" in messages
