from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.metrics.pictures import read_pictures
from pipeline.models.bundle import Preprocess
from pipeline.models.drop_path import sample_keys
from pipeline.models.masking import Masking, random_masking
from pipeline.models.patch_embed import patchify
from pipeline.models.spec import Pair
from pipeline.stream.batch import Batch
from pipeline.tasks._masked import masked_pixels
from pipeline.tasks._reconstructions import COUNT, GAP, Reconstruction, Reconstructions, paste, side_by_side

PREPROCESS = Preprocess((0.4, 0.5, 0.6), (0.2, 0.3, 0.1), 3, (16, 24))
SHAPES = [((28, 28), (4, 4)), ((12, 30), (3, 5)), ((8, 8), (1, 1))]


def masking_of(images: torch.Tensor, patch: Pair) -> Masking:
    grid = (images.shape[-2] // patch[0], images.shape[-1] // patch[1])
    return random_masking(sample_keys(1, torch.arange(len(images))), grid, 0.75)


def batch_of(slots: list[int]) -> Batch:
    """Each sample's pixels follow from its slot."""
    images = [
        torch.randint(256, (3, 16, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(s)) for s in slots
    ]
    count = len(slots)
    return Batch({"image": torch.stack(images)}, {}, torch.ones(count), torch.tensor(slots), [""] * count, 0)


def perfect(batch: Batch) -> Reconstruction:
    """What a model would say that knows all pixels."""
    images = PREPROCESS.normalise(batch.views["image"])
    masking = random_masking(sample_keys(0, batch.slots), (4, 4), 0.75)
    return Reconstruction(masked_pixels(images, masking, (4, 6)), masking, (4, 6))


@pytest.mark.parametrize(("size", "patch"), SHAPES)
def test_pasting_changes_the_masked_patches_alone(size: Pair, patch: Pair) -> None:
    images = torch.rand(3, 2, *size)
    masking = masking_of(images, patch)
    assert torch.equal(paste(images, masked_pixels(images, masking, patch), masking, patch), images)
    hidden = patchify(paste(images, -1.0, masking, patch), patch)
    assert torch.equal((hidden == -1).all(dim=2), masking.as_mask())
    visible = ~masking.as_mask()
    assert torch.equal(hidden[visible], patchify(images, patch)[visible])


def test_shows_the_same_samples_however_they_came_about(tmp_path: Path) -> None:
    """Over batches and ranks; stand-ins never."""
    alone, ranks = Reconstructions(PREPROCESS), [Reconstructions(PREPROCESS) for _ in range(3)]
    for start in range(0, 90, 30):
        batch = batch_of(list(range(start, start + 30)))
        alone.add(perfect(batch), batch)
    for rank, collector in enumerate(ranks):
        for start in range(rank, 90, 15):
            batch = batch_of(list(range(start, min(start + 15, 90), 3)))
            collector.add(perfect(batch), batch)
    for other in ranks[1:]:
        ranks[0].merge(other.state())
    stand_in = batch_of([alone.state()[0][1]])
    stand_in.weights[:] = 0
    empty = Reconstructions(PREPROCESS)
    empty.add(perfect(stand_in), stand_in)
    assert empty.state() == []
    for number, collector in enumerate((alone, ranks[0])):
        collector.write(tmp_path / str(number), "pretrain", [])
    (one, other) = (read_pictures(tmp_path / str(number)) for number in range(2))
    assert len(one) == COUNT
    assert [path.name for path, _ in one] == [path.name for path, _ in other]
    assert all(a.read_bytes() == b.read_bytes() for (a, _), (b, _) in zip(one, other, strict=True))


def test_a_perfect_reconstruction_is_the_original() -> None:
    batch, collector = batch_of([5]), Reconstructions(PREPROCESS)
    collector.add(perfect(batch), batch)
    picture = collector.state()[0][2]
    width = (picture.shape[1] - 2 * GAP) // 3
    original, hidden, rebuilt = (picture[:, n * (width + GAP) :][:, :width] for n in range(3))
    assert np.abs(original.astype(int) - rebuilt).max() <= 1
    times = width // 24
    assert np.array_equal(original[::times, ::times].transpose(2, 0, 1), batch.views["image"][0].numpy())
    assert (hidden == 128).all(axis=2).mean() == pytest.approx(0.75, abs=0.01)


def test_grey_images_stay_grey_and_large_ones_their_size() -> None:
    assert side_by_side(np.zeros((3, 1, 28, 28), np.uint8)).shape == (112, 3 * 112 + 2 * GAP)
    assert side_by_side(np.zeros((3, 3, 224, 160), np.uint8)).shape == (224, 3 * 160 + 2 * GAP, 3)
