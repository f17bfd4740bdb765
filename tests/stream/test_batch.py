from __future__ import annotations

import numpy as np
import torch

from pipeline.stream.batch import assemble, fill, put_image
from pipeline.stream.sample import Sample


def sample(slot: int) -> Sample:
    return Sample(f"a/{slot}", np.full((2, 3, 1), slot, np.uint8), slot, slot + 1, 0.25, 1.0)


def test_parts_are_merged_in_slot_order() -> None:
    images = torch.empty(6, 1, 2, 3, dtype=torch.uint8)
    shares = (np.array(rows, np.int64) for rows in ([0, 3, 4], [], [1, 2, 5]))
    parts = [fill(images.numpy(), rows, rows, map(sample, rows.tolist())) for rows in shares]
    batch = assemble(images, parts, step=7)
    assert batch.step == 7
    assert batch.keys == [f"a/{slot}" for slot in range(6)]
    assert batch.slots.tolist() == batch.labels.tolist() == batch.images[:, 0, 1, 2].tolist() == list(range(6))
    assert batch.labels_mix.tolist() == list(range(1, 7))
    assert batch.mix.tolist() == [0.25] * 6
    dtypes = batch.images.dtype, batch.labels.dtype, batch.labels_mix.dtype, batch.mix.dtype, batch.weights.dtype
    assert dtypes == (torch.uint8, torch.int64, torch.int64, torch.float32, torch.float32)


def test_images_are_laid_out_by_channel() -> None:
    image = np.random.default_rng(0).integers(256, size=(6, 9, 3), dtype=np.uint8)
    row = np.empty((3, 4, 5), np.uint8)
    put_image(row, image[1:5, 2:7])
    np.testing.assert_array_equal(row, image[1:5, 2:7].transpose(2, 0, 1))
    put_image(row, None)
    assert not row.any()
