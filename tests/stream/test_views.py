"""Several views of each sample: each has its own random draws, and the first is the same as without the others."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.data import AugmentConfig
from pipeline.config.views import ViewGroup
from pipeline.stream.draws import AUGMENT, SlotDraws

AUGMENTED = AugmentConfig(crop="random_resized", erase=0.5)
GROUPS = {"global": ViewGroup(2), "local": ViewGroup(3, (4, 6))}
SETTINGS = {"global_batch_size": 16, "lanes": 8, "window": 5, "augment": AUGMENTED}


@pytest.fixture(scope="module")
def noise(kit, tmp_path_factory):
    """Images of noise, in which each crop is another; s5 is torn."""

    def spoil(number: int, members: dict[str, bytes]) -> dict[str, bytes]:
        pixels = np.random.default_rng(number).integers(256, size=(24, 24), dtype=np.uint8)
        return {**members, "png": b"torn" if number == 5 else kit.encode(pixels)}

    return kit.write_shards(tmp_path_factory.mktemp("noise"), [40], spoil=spoil)


def test_groups_have_their_numbers_and_sizes(noise, kit) -> None:
    ((batch,),) = kit.in_process(noise, world_size=1, workers=2, steps=1, views=GROUPS, **SETTINGS)
    shapes = {name: tuple(views.shape) for name, views in batch.views.items()}
    assert shapes == {"global": (16, 2, 1, 8, 8), "local": (16, 3, 1, 4, 6)}
    assert all(views.dtype == torch.uint8 for views in batch.views.values())
    first, second = batch.views["global"].unbind(dim=1)
    assert not any(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_a_view_depends_on_its_number_and_on_no_other(noise, kit) -> None:
    def images(views: dict[str, ViewGroup]) -> dict[str, torch.Tensor]:
        steps = kit.in_process(noise, world_size=1, workers=1, steps=3, views=views, **SETTINGS)
        return {name: torch.cat([step[0].views[name] for step in steps]) for name in views}

    both, alone, more = images(GROUPS), images({"image": ViewGroup()}), images({"all": ViewGroup(4)})
    assert torch.equal(both["global"][:, 0], alone["image"])
    assert torch.equal(both["global"], more["all"][:, :2])
    other = images({"one": ViewGroup(), "two": ViewGroup(), "local": ViewGroup(1, (4, 6))})
    assert torch.equal(other["two"], both["global"][:, 1])
    assert torch.equal(other["local"], both["local"][:, 0])


@settings(max_examples=10, deadline=None)
@given(world_size=st.integers(1, 8), workers=st.integers(1, 3), start=st.integers(0, 4))
def test_views_are_the_same_for_every_split_and_after_a_restart(noise, kit, world_size, workers, start) -> None:
    def rows(steps: list) -> list:
        return sorted(
            (slot, key, float(weight), *(batch.views[name][row].numpy().tobytes() for name in GROUPS))
            for step in steps
            for batch in step
            for row, (slot, key, weight) in enumerate(zip(batch.slots.tolist(), batch.keys, batch.weights, strict=True))
        )

    whole = kit.in_process(noise, world_size=1, workers=1, steps=start + 2, views=GROUPS, **SETTINGS)
    tail = {"start_slot": start * 16, "steps": 2, "views": GROUPS, **SETTINGS}
    assert rows(kit.in_process(noise, world_size=world_size, workers=workers, **tail)) == rows(whole[start:])


def test_each_group_crops_by_a_scale_of_its_own(kit, tmp_path) -> None:
    """Of images whose columns are 0 to 239, a crop shows as many as it is wide; `augment` decides the rest."""

    def ramp(number: int, members: dict[str, bytes]) -> dict[str, bytes]:
        return {**members, "png": kit.encode(np.tile(np.arange(240, dtype=np.uint8), (240, 1)))}

    index = kit.write_shards(tmp_path, [40], spoil=ramp)
    views = {"global": ViewGroup(2, (24, 24), (0.5, 1.0)), "local": ViewGroup(3, (24, 24), (0.05, 0.1))}
    settings = {**SETTINGS, "augment": AugmentConfig(crop="none", flip=False)}
    steps = kit.in_process(index, world_size=1, workers=1, steps=2, views={**views, "whole": ViewGroup()}, **settings)
    for (batch,) in steps:
        seen = {name: (v.amax(dim=(-1, -2)).int() - v.amin(dim=(-1, -2)).int()) for name, v in batch.views.items()}
        assert seen["global"].min() > 0.5**0.5 * 3 / 4 * 240 - 20
        assert seen["local"].max() < 0.1**0.5 * 4 / 3 * 240
        assert seen["whole"].min() > 200, "a group without a scale crops as `augment` says"


def test_a_stand_in_has_all_views_of_a_neighbour(noise, kit) -> None:
    steps = kit.in_process(
        noise, world_size=1, workers=1, steps=5, views=GROUPS, **{**SETTINGS, "global_batch_size": 8}
    )
    bad = [(step[0], row) for step in steps for row in (step[0].weights == 0).nonzero()[:, 0].tolist()]
    assert [batch.keys[row] for batch, row in bad] == ["train-000000.tar/s5"]
    for batch, row in bad:
        assert all(view.any() for name in GROUPS for view in batch.views[name][row])


def test_mixing_several_views_is_our_own_mistake(noise, kit) -> None:
    augment = AugmentConfig(mixup=0.5)
    with pytest.raises(AssertionError, match="several views of a sample cannot be mixed"):
        kit.in_process(noise, world_size=1, workers=1, steps=1, views=GROUPS, **{**SETTINGS, "augment": augment})


def test_evaluation_shows_the_first_group_once(noise, kit) -> None:
    loader = kit.eval_loader(
        kit.source(noise), targets=[], views={"local": ViewGroup(3, (4, 6)), "global": ViewGroup(2)}
    )
    batch = next(iter(loader))
    assert {name: tuple(views.shape) for name, views in batch.views.items()} == {"local": (8, 1, 4, 6)}


def test_views_share_no_draws() -> None:
    draws = SlotDraws(0, AUGMENT)
    assert len({draws.at(slot, view).random() for slot in range(30) for view in range(8)}) == 240
    assert draws.at(7, 0).random() == draws.at(7).random()
