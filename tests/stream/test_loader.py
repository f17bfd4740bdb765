from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.data import AugmentConfig, DatasetConfig
from pipeline.errors import DataError
from pipeline.shards.build import build_index
from pipeline.targets.class_id import ClassId
from pipeline.train.micro_batch import tensors_of

CLASSES = ClassId(("cls",), tuple(range(10)), 10)
AUGMENT = AugmentConfig(mixup=0.5, erase=0.5)


def evaluate(kit, index, rank=0, world_size=1, batch_size=8, workers=0, **settings) -> list:
    place = {"rank": rank, "world_size": world_size, "batch_size": batch_size, "loader_workers": workers}
    loader = kit.eval_loader(kit.source(index), **place, **settings)
    batches = list(loader)
    assert len(batches) == len(loader)
    return batches


@pytest.mark.parametrize("workers", [1, 3])
def test_worker_processes_yield_what_a_thread_yields(uneven, kit, workers: int) -> None:
    batches = {}
    for count in (0, workers):
        with kit.train_loader(uneven, data={"loader_workers": count, "augment": AUGMENT}) as loader:
            batches[count] = list(islice(loader, 12))
    for ours, theirs in zip(batches[workers], batches[0], strict=True):
        assert ours.keys == theirs.keys
        assert ours.step == theirs.step
        theirs = tensors_of(theirs)
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in tensors_of(ours).items())


def test_transparent_pixels_show_the_background_of_their_data_set(kit, tmp_path) -> None:
    """In training and evaluation alike."""
    ink = np.zeros((8, 8, 4), np.uint8)
    ink[2:4, 2:4, 3] = 255
    index = kit.write_shards(tmp_path, [8], spoil=lambda _, members: {**members, "png": kit.encode(ink)})
    for level in (255, 90):
        config = DatasetConfig(shards="unused", background=(level, level, level))
        expected = torch.full((8, 8), level, dtype=torch.uint8)
        expected[2:4, 2:4] = 0
        with kit.train_loader([kit.source(index, config=config)]) as loader:
            batch = next(iter(loader))
        (seen,) = kit.eval_loader(kit.source(index, config=config, targets={}))
        for images in (batch.views["image"], seen.views["image"]):
            assert (images.squeeze() == expected).all()


def test_the_models_generator_is_left_alone(uneven, kit) -> None:
    before = torch.random.get_rng_state()
    with kit.train_loader(uneven, data={"loader_workers": 1, "augment": AUGMENT}) as loader:
        next(loader)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 2])
def test_close_ends_threads_and_processes(uneven, kit, workers: int) -> None:
    threads = set(threading.enumerate())
    loader = kit.train_loader(uneven, data={"loader_workers": workers})
    next(loader)
    begin = time.monotonic()
    loader.close()
    loader.close()
    assert time.monotonic() - begin < 5
    assert not [thread for thread in set(threading.enumerate()) - threads if thread.name == "prefetch"]
    with pytest.raises(StopIteration):
        next(loader)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_workers_error_arrives_as_itself(kit, tmp_path, workers: int) -> None:
    def spoil(number: int, members: dict[str, bytes]) -> dict[str, bytes]:
        return {**members, "cls": b"10"} if number == 7 else members

    index = kit.write_shards(tmp_path, [16], spoil=spoil)
    with kit.train_loader(index, data={"loader_workers": workers}) as loader, pytest.raises(DataError) as caught:
        list(loader)
    assert type(caught.value) is DataError
    assert str(caught.value) == (
        "train-000000.tar/s7 has label 10, but labels must be 0 to 9 for 10 classes; "
        "correct the label or the dataset's `classes`"
    )


def test_a_missing_shard_is_one_sentence(kit, tmp_path) -> None:
    index = kit.write_shards(tmp_path, [16])
    (tmp_path / "train-000000.tar").unlink()
    with kit.train_loader(index) as loader, pytest.raises(DataError, match=r"train-000000\.tar"):
        next(loader)


def test_too_many_lanes_or_ranks_are_refused_before_anything_starts(uneven, kit) -> None:
    with pytest.raises(DataError, match=r"set data\.lanes to at most 73"):
        kit.train_loader(uneven, data={"lanes": 74})
    with pytest.raises(DataError, match="cannot be split among 5 ranks"):
        kit.train_loader(uneven, world_size=5)


def test_a_killed_worker_is_reported(uneven, kit) -> None:
    with kit.train_loader(uneven, data={"loader_workers": 1}) as loader:
        next(loader)
        for child in children_of(forkserver_pid()):
            os.kill(child, signal.SIGKILL)
        with pytest.raises(DataError, match="a loader worker was killed"):
            list(loader)


def test_a_script_that_forgets_to_close_ends_all_the_same(uneven, tmp_path) -> None:
    script = tmp_path / "forgets.py"
    script.write_text(FORGETFUL.format(folder=uneven.url))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "8"
    assert "Traceback" not in done.stderr


FORGETFUL = """
from functools import partial
from pipeline.config.data import AugmentConfig, DataConfig, DatasetConfig
from pipeline.config.training import ResolutionConfig
from pipeline.config.views import IMAGE
from pipeline.shards.index_file import load_index
from pipeline.stream.loader import TrainLoader
from pipeline.stream.resolution import size_at
from pipeline.stream.source import Source

if __name__ == "__main__":
    size = partial(size_at, total_steps=9, base_size=(8, 8), resolution=ResolutionConfig(), seed=0)
    loader = TrainLoader(
        [Source("t", load_index({folder!r}), DatasetConfig(shards="unused"), AugmentConfig())],
        DataConfig(train="t", lanes=4, loader_workers=1),
        channels=1, targets=[], views=IMAGE, seed=0, rank=0, world_size=1, global_batch_size=8, size_at=size,
    )
    print(len(next(loader).keys))
"""


def forkserver_pid() -> int:
    from multiprocessing import forkserver

    return forkserver._forkserver._forkserver_pid


def children_of(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]


@settings(max_examples=30, deadline=None)
@given(world_size=st.integers(1, 8), batch_size=st.integers(1, 90))
def test_evaluation_sees_each_sample_once_in_equally_many_batches(
    uneven, kit, world_size: int, batch_size: int
) -> None:
    ranks = [evaluate(kit, uneven, rank, world_size, batch_size) for rank in range(world_size)]
    assert len({len(batches) for batches in ranks}) == 1
    assert len({tuple(batch.views["image"].shape) for batches in ranks for batch in batches}) == 1
    batches = [batch for batches in ranks for batch in batches]
    slots = torch.cat([batch.slots for batch in batches])
    weights = torch.cat([batch.weights for batch in batches])
    assert sorted(slots[weights == 1].tolist()) == list(range(73))
    assert (slots[weights == 0] == -1).all()
    keys = [key for batch in batches for key in batch.keys if key]
    assert sorted(int(key.rsplit("/s", 1)[1]) for key in keys) == list(range(73))


@pytest.mark.parametrize("workers", [1, 3])
def test_evaluation_by_processes_keeps_the_order_of_batches(uneven, kit, workers: int) -> None:
    for ours, theirs in zip(evaluate(kit, uneven, workers=workers), evaluate(kit, uneven), strict=True):
        assert ours.keys == theirs.keys
        assert torch.equal(ours.views["image"], theirs.views["image"])


def test_evaluation_resizes_and_nothing_else(uneven, kit) -> None:
    batch = evaluate(kit, uneven)[1]
    np.testing.assert_array_equal(batch.views["image"][:, 0, -1, -1].numpy(), np.arange(8, 16))


def test_evaluation_gives_a_bad_sample_no_weight(kit, tmp_path) -> None:
    index = kit.write_shards(tmp_path, [5], spoil=lambda n, members: {**members, "png": b"torn"} if n == 3 else members)
    (batch,) = evaluate(kit, index, quarantine_path=tmp_path / "bad.jsonl")
    assert batch.weights.tolist() == [1, 1, 1, 0, 1]
    assert batch.keys[3] == "train-000000.tar/s3"
    assert "s3" in (tmp_path / "bad.rank0-worker0.jsonl").read_text()


def test_members_are_those_of_the_index_unless_the_config_names_others(kit, tmp_path) -> None:
    def renamed(number: int, members: dict[str, bytes]) -> dict[str, bytes]:
        return {"img.png": members["png"], "seg.png": b"no picture", "y": members["cls"]}

    kit.write_shards(tmp_path, [20], spoil=renamed)
    index = build_index(str(tmp_path), image_key="img.png", targets={"class_id": ("y",)}, workers=1)
    named = {"class_id": replace(CLASSES, members=("y",))}
    with kit.train_loader([kit.source(index, targets=named)]) as loader:
        assert next(loader).weights.eq(1).all()
    other = kit.source(index, config=DatasetConfig(shards="unused", image_key="seg.png"), targets=named)
    with kit.train_loader([other]) as loader:
        assert next(loader).weights.eq(0).all()
