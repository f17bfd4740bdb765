"""It makes no difference which worker reads a sample: the workers' code on real shards, for every split."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.data import AugmentConfig, RandAugmentConfig
from pipeline.stream.batch import Batch

AUGMENTED = AugmentConfig(
    crop="padded", color_jitter=0.4, rand_augment=RandAugmentConfig(), erase=0.5, mixup=0.2, cutmix=1.0
)


def by_slot(step: list[Batch]) -> list[tuple]:
    """The content of a global batch, rank after rank, in slot order."""
    rows = []
    for batch in step:
        assert batch.slots.tolist() == sorted(batch.slots.tolist())
        for row, slot in enumerate(batch.slots.tolist()):
            target = (
                batch.targets["label"][row].item(),
                batch.targets["label_mix"][row].item(),
                batch.targets["label_share"][row].item(),
                batch.weights[row].item(),
            )
            rows.append((slot, batch.keys[row], target, batch.views["image"][row].numpy().tobytes()))
    return sorted(rows)


@settings(max_examples=25, deadline=None)
@given(
    world_size=st.integers(1, 8),
    workers=st.integers(1, 4),
    lanes=st.integers(8, 24),
    batch=st.integers(1, 40),
    window=st.integers(1, 9),
    seed=st.integers(0, 5),
)
def test_global_batches_are_the_same_for_every_split(
    uneven, kit, world_size, workers, lanes, batch, window, seed
) -> None:
    settings = {
        "steps": 5,
        "global_batch_size": batch,
        "lanes": lanes,
        "window": window,
        "seed": seed,
        "augment": AUGMENTED,
    }
    alone = kit.in_process(uneven, world_size=1, workers=1, **settings)
    split = kit.in_process(uneven, world_size=world_size, workers=workers, **settings)
    assert [by_slot(step) for step in split] == [by_slot(step) for step in alone]
    assert [step[0].step for step in split] == list(range(5))


@settings(max_examples=25, deadline=None)
@given(world_size=st.integers(1, 8), workers=st.integers(1, 4), batch=st.integers(1, 40), start=st.integers(0, 12))
def test_a_resumed_run_is_the_tail_of_the_whole_one(uneven, kit, world_size, workers, batch, start) -> None:
    settings = {"global_batch_size": batch, "lanes": 8, "window": 5, "augment": AUGMENTED}
    whole = kit.in_process(uneven, world_size=2, workers=1, steps=start + 3, **settings)
    tail = kit.in_process(uneven, world_size=world_size, workers=workers, steps=3, start_slot=start * batch, **settings)
    assert [by_slot(step) for step in tail] == [by_slot(step) for step in whole[start:]]
    assert tail[0][0].step == start


def test_an_epoch_reads_every_sample_once(uneven, kit) -> None:
    lanes = 8
    steps = kit.in_process(
        uneven, world_size=3, workers=2, steps=uneven.num_samples // lanes, global_batch_size=lanes, lanes=lanes
    )
    keys = [key for step in steps for batch in step for key in batch.keys]
    assert len(set(keys)) == len(keys) == uneven.num_samples - uneven.num_samples % lanes


def test_key_label_and_pixels_belong_together(uneven, kit) -> None:
    for (batch,) in kit.in_process(uneven, world_size=1, workers=3, steps=10, global_batch_size=8, lanes=8):
        numbers = torch.tensor([int(key.rsplit("/s", 1)[1]) for key in batch.keys])
        assert torch.equal(batch.targets["label"], numbers % kit.num_classes)
        assert torch.equal(batch.views["image"][:, 0, -1, -1].long(), numbers % 251)
        assert batch.views["image"].shape == (8, 1, 8, 8)
        assert batch.weights.eq(1).all()
        assert batch.targets["label_share"].eq(1).all()


def test_mixing_partners_are_each_others(uneven, kit) -> None:
    """In a window, places 0 and 1, 2 and 3 ... exchange labels; with 2 lanes they are 2 slots apart."""
    augment = AugmentConfig(crop="none", flip=False, mixup=1.0)
    steps = kit.in_process(
        uneven, world_size=1, workers=1, steps=2, global_batch_size=32, lanes=2, window=36, augment=augment
    )
    labels = torch.cat([step[0].targets["label"] for step in steps])
    partners = torch.cat([step[0].targets["label_mix"] for step in steps])
    pairs = labels.reshape(-1, 2, 2).flip(1).reshape(-1)  # [pair, member, lane]
    assert torch.equal(partners, pairs)


def test_a_rank_without_a_lane_in_a_small_batch_gets_an_empty_one(uneven, kit) -> None:
    (step,) = kit.in_process(uneven, world_size=4, workers=1, steps=1, global_batch_size=2, lanes=8)
    assert [len(batch.keys) for batch in step] == [1, 1, 0, 0]
    assert step[3].views["image"].shape == (0, 1, 8, 8)


@pytest.mark.parametrize("channels", [1, 3])
def test_images_may_have_one_channel_or_three(kit, tmp_path, channels) -> None:
    pixels = np.random.default_rng(0).integers(256, size=(8, 8, 3), dtype=np.uint8)
    index = kit.write_shards(tmp_path, [6], spoil=lambda _, members: {**members, "png": kit.encode(pixels)})
    with kit.train_loader(index, channels=channels) as loader:
        images = next(loader).views["image"]
    assert images.shape == (8, channels, 8, 8)
    if channels == 3:
        np.testing.assert_array_equal(images[0].permute(1, 2, 0).numpy(), pixels)
