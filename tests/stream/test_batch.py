from __future__ import annotations

import numpy as np
import torch

from pipeline.stream.batch import assemble
from pipeline.stream.layout import BatchLayout
from pipeline.stream.rows import put_image, write_rows
from pipeline.stream.sample import Sample
from pipeline.targets.class_id import FIELDS, ClassId, ClassLabel

TARGETS = [ClassId(("cls",), tuple(range(7)), 7)]


def sample(slot: int) -> Sample:
    if slot == 3:
        return Sample("a/3", weight=0.0, reason="torn")
    return Sample(f"a/{slot}", (np.full((2, 3, 1), slot, np.uint8),), (ClassLabel(slot, slot + 1, 0.25),))


def test_parts_are_merged_in_slot_order() -> None:
    layout = BatchLayout(6, {"image": (1, 2, 3)}, FIELDS)
    memory = np.full(layout.bytes, 255, np.uint8)
    shares = (np.array(rows, np.int64) for rows in ([0, 3, 4], [], [1, 2, 5]))
    written = [write_rows(memory, layout, TARGETS, rows, rows, map(sample, rows.tolist())) for rows in shares]
    batch = assemble(memory, layout, written, step=7)
    assert batch.step == 7
    assert batch.keys == [f"a/{slot}" for slot in range(6)]
    images, targets = batch.views["image"], batch.targets
    assert batch.slots.tolist() == list(range(6))
    assert targets["label"].tolist() == images[:, 0, 1, 2].tolist() == [0, 1, 2, 0, 4, 5]
    assert targets["label_mix"].tolist() == [1, 2, 3, 0, 5, 6]
    assert targets["label_share"].tolist() == [0.25, 0.25, 0.25, 1, 0.25, 0.25]
    assert batch.weights.tolist() == [1, 1, 1, 0, 1, 1]
    assert batch.reasons == ["torn"]
    dtypes = [images.dtype, *(tensor.dtype for tensor in targets.values()), batch.weights.dtype]
    assert dtypes == [torch.uint8, torch.int64, torch.int64, torch.float32, torch.float32]


def test_images_are_laid_out_by_channel() -> None:
    image = np.random.default_rng(0).integers(256, size=(6, 9, 3), dtype=np.uint8)
    row = np.empty((3, 4, 5), np.uint8)
    put_image(row, image[1:5, 2:7])
    np.testing.assert_array_equal(row, image[1:5, 2:7].transpose(2, 0, 1))
