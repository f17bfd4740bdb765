"""Class maps through the loaders match the images."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.config.data import AugmentConfig
from pipeline.shards.build import build_index
from pipeline.shards.index import DatasetIndex
from pipeline.shards.write import TarWriter
from pipeline.stream.batch import Batch
from pipeline.targets.mask import Mask

NUM_CLASSES, STEP = 5, 40  # a class shows as STEP * (class + 1)
SIZE = (12, 10)
MASK = Mask(("seg.png",), tuple(range(NUM_CLASSES)), NUM_CLASSES)
MOVES = AugmentConfig(crop="padded", padding=0.3)
BAD = "s3"  # whose mask is missing


@pytest.fixture
def scenes(tmp_path: Path, kit) -> DatasetIndex:
    """Twenty scenes of uneven sizes, grey levels by class; pixels of ignored ones are of any level."""
    rng = np.random.default_rng(0)
    writer = TarWriter(tmp_path / "train-000000.tar")
    for number in range(20):
        ids = rng.integers(NUM_CLASSES, size=(12 + number % 3, 10), dtype=np.uint8)
        shown = (ids + 1) * STEP
        ids[2:4, 3] = 255
        members = {"png": kit.encode(shown.astype(np.uint8)), "seg.png": kit.encode(ids)}
        if f"s{number}" == BAD:
            del members["seg.png"]
        writer.write(f"s{number}", members)
    writer.finish()
    return build_index(str(tmp_path), workers=1)


def train(scenes: DatasetIndex, kit, workers: int = 0, augment: AugmentConfig = MOVES) -> Iterator[Batch]:
    sources = [kit.source(scenes, augment, targets={"mask": MASK})]
    data = {"loader_workers": workers, "augment": augment}
    with kit.train_loader(sources, data=data, targets=["mask"], size_at=kit.fixed_size(*SIZE)) as loader:
        yield from islice(loader, 12)


@pytest.mark.parametrize("workers", [0, 2])
def test_masks_show_what_images_show(scenes: DatasetIndex, kit, workers: int) -> None:
    checked = 0
    for batch in train(scenes, kit, workers):
        masks, images = batch.targets["mask"], batch.views["image"][:, 0]
        assert masks.dtype == torch.int8
        assert masks.shape == (8, *SIZE)
        for key, mask, image, weight in zip(batch.keys, masks, images, batch.weights, strict=True):
            if key.endswith(BAD):
                assert weight == 0
                assert (mask == -1).all()
            elif weight:
                assert (mask[image == 0] == -1).all(), "padding is labelled"
                sure = (mask >= 0) & (image % STEP == 0)  # where nothing was interpolated
                assert torch.equal(image[sure].int(), (mask[sure].int() + 1) * STEP)
                checked += int(sure.sum())
                ignored = int((mask == -1).sum() - (image == 0).sum())
                assert 0 <= ignored <= 3, "ignored pixels, but for padding"
    assert checked > 3000


def test_bad_masks_are_reported(scenes: DatasetIndex, kit) -> None:
    reasons = {reason for batch in train(scenes, kit) for reason in batch.reasons}
    assert reasons == {"no mask member (looked for seg.png; found png)"}


def test_in_evaluation_labels_keep_their_size(scenes: DatasetIndex, kit) -> None:
    loader = kit.eval_loader(kit.source(scenes, targets={"mask": MASK}), size=(6, 6))
    for batch in loader:
        values, offsets = batch.targets["mask_full"], batch.targets["mask_full.offsets"].tolist()
        for row, (key, weight) in enumerate(zip(batch.keys, batch.weights.tolist(), strict=True)):
            mine = values[offsets[row] : offsets[row + 1]]
            height, width = batch.targets["mask_full_size"][row].tolist()
            assert len(mine) == height * width
            if weight:
                assert (height, width) == (12 + int(key.rpartition("/s")[2]) % 3, 10)
                assert int((mine == -1).sum()) == 2
            else:
                assert height * width == 0
