"""What the processes share: buffers come back when their tensors go, and grow with the images."""

from __future__ import annotations

import gc
from functools import partial
from itertools import islice

import pytest
import torch

from pipeline.config.training import ResolutionConfig
from pipeline.stream import workers
from pipeline.stream.resolution import size_at


@pytest.fixture
def buffers(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the buffers that the rank makes."""
    made = []
    real = workers.Buffer

    class Recording(real):
        def __init__(self, number: int, size: int, handle: int | None = None) -> None:
            super().__init__(number, size, handle)
            made.append(size)

    monkeypatch.setattr(workers, "Buffer", Recording)
    return made


def test_a_few_buffers_are_used_again_and_again(uneven, kit, buffers: list[int]) -> None:
    with kit.train_loader(uneven, data={"loader_workers": 2}) as loader:
        for _ in range(50):
            next(loader)
            gc.collect()
    assert len(buffers) <= 8


def test_batches_that_are_kept_are_never_written_again(uneven, kit) -> None:
    with kit.train_loader(uneven, data={"loader_workers": 2}) as loader:
        kept = list(islice(loader, 20))
        first = [batch.images.clone() for batch in kept]
        del kept[::2]
        gc.collect()
        for _ in range(20):
            next(loader)
        assert all(torch.equal(batch.images, image) for batch, image in zip(kept, first[1::2], strict=True))


def test_larger_images_take_larger_buffers(uneven, kit, buffers: list[int]) -> None:
    sizes = ResolutionConfig(mode="random", sizes=[8, 500, 900])
    size = partial(size_at, total_steps=100, base_size=(8, 8), resolution=sizes, seed=0)
    with kit.train_loader(uneven, data={"loader_workers": 1}, size_at=size) as loader:
        sides = [next(loader).images.shape[-1] for _ in range(12)]
    assert sides == [size(step)[0] for step in range(12)]
    assert max(buffers) >= 8 * 900 * 900
