"""Windowed attention equals masked attention, computed only where the mask allows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional

from pipeline.errors import ModelError
from pipeline.models import MiniViT, ModelSpec
from pipeline.models.model_costs import forward_flops
from pipeline.models.spec import Windows, window_sides
from pipeline.models.windows import window_mask, windowed_attention


@pytest.mark.parametrize("grid", [(6, 6), (5, 7), (2, 3), (3, 9)])
@pytest.mark.parametrize("num_prefix", [0, 1, 3])
def test_it_is_attention_under_a_mask(grid: tuple[int, int], num_prefix: int) -> None:
    generator = torch.Generator().manual_seed(0)
    shape = 2, 3, num_prefix + grid[0] * grid[1], 8
    q, k, v = (torch.randn(shape, generator=generator, requires_grad=True) for _ in range(3))
    expected = functional.scaled_dot_product_attention(q, k, v, attn_mask=window_mask(grid, 3, num_prefix))
    weight = torch.randn(shape, generator=generator)
    wanted = torch.autograd.grad((expected * weight).sum(), (q, k, v))
    found = windowed_attention(q, k, v, grid, 3)
    torch.testing.assert_close(found, expected)
    for gradient, of_mask in zip(torch.autograd.grad((found * weight).sum(), (q, k, v)), wanted, strict=True):
        torch.testing.assert_close(gradient, of_mask)


def test_a_patch_reads_its_window_and_the_prefix_reads_all() -> None:
    reads = window_mask((3, 4), 2, 1)
    assert reads[0].all()
    assert reads[:, 0].all()
    assert reads[1, 1:].nonzero().flatten().tolist() == [0, 1, 4, 5]  # the window of the upper left corner
    assert reads[12, 1:].nonzero().flatten().tolist() == [10, 11]  # one at the lower edge is smaller


def test_windows_divide_an_image_evenly() -> None:
    assert window_sides((32, 64), 14) == (11, 13)
    assert window_sides((14, 28), 14) == (14, 14)
    assert window_sides((5, 1), 14) == (5, 1)


def test_a_window_over_the_whole_image_changes_nothing(
    small_spec: Callable[..., ModelSpec], randomise: Callable[..., None]
) -> None:
    spec = small_spec(depth=3)
    model, windowed = (MiniViT.from_spec(each) for each in (spec, spec.with_backbone(windows=Windows(4))))
    for each in (model, windowed):
        randomise(each)
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(windowed(images), model(images))


@pytest.mark.parametrize("checkpointing", ["none", "full"])
def test_layers_with_windows_are_those_that_attention_maps_show(
    small_spec: Callable[..., ModelSpec], randomise: Callable[..., None], checkpointing: Any
) -> None:
    spec = small_spec(depth=4, registers=1, windows=Windows(2, global_every=3))
    model = MiniViT.from_spec(spec)
    randomise(model)
    model.transformer.recompute_activations(checkpointing)
    images = torch.randn(2, 3, 16, 12, requires_grad=True)
    mask = window_mask((4, 3), 2, 2)
    maps = model.attention_maps(images)
    assert [bool((maps[:, layer] > 0).all()) for layer in range(4)] == [True, False, False, True]
    for layer in (1, 2):
        assert ((maps[:, layer] > 0) == mask).all()
    grid, x = model.grid(images), model.embed(images)
    for layer, shown in zip(model.transformer.layers, maps.unbind(dim=1), strict=True):
        values = layer.self_attn._project(layer.norm1(x), None)[2]
        read = layer.self_attn.out_proj((shown @ values).transpose(1, 2).flatten(2))
        y = layer(x, grid=grid)
        torch.testing.assert_close(x + read + layer._feed_forward(x + read, None), y)
        x = y
    torch.testing.assert_close(model.forward_features(images), x)
    model(images).sum().backward()
    assert images.grad is not None
    assert images.grad.isfinite().all()


def test_work_grows_with_the_area(small_spec: Callable[..., ModelSpec]) -> None:
    spec = small_spec(depth=3, image_size=64)
    windowed = spec.with_backbone(windows=Windows(4))
    patches, dim = 16 * 16, spec.backbone.embed_dim
    saved = 2 * 2 * 2 * dim * patches * (patches - 16)  # two layers; scores and their use; a multiply and an add
    assert forward_flops(spec) - forward_flops(windowed) == saved


def test_padding_counts_and_windows_larger_than_the_image_cost_nothing(small_spec: Callable[..., ModelSpec]) -> None:
    spec = small_spec(depth=3, image_size=20)  # 5 x 5 patches in four windows of 3 x 3
    prefix, dim = 1, spec.backbone.embed_dim
    windowed = forward_flops(spec.with_backbone(windows=Windows(3)))
    pairs = prefix * (prefix + 25) + 4 * 9 * (prefix + 9)
    assert forward_flops(spec) - windowed == 2 * 2 * 2 * dim * (26 * 26 - pairs)
    large = spec.with_backbone(windows=Windows(5000))
    plain, windowed_model = (MiniViT.from_spec(each).eval() for each in (spec, large))
    windowed_model.load_state_dict(plain.state_dict())
    images = torch.randn(1, 3, 20, 20)
    assert torch.equal(windowed_model(images), plain(images))


def test_a_spec_keeps_them(small_spec: Callable[..., ModelSpec]) -> None:
    spec = small_spec(windows=Windows(4, 2))
    assert ModelSpec.from_dict(spec.to_dict()) == spec
    assert ModelSpec.from_dict(small_spec().to_dict()).backbone.windows is None


def test_what_they_cannot_be(small_spec: Callable[..., ModelSpec]) -> None:
    with pytest.raises(
        ModelError, match=r"^model\.windows: found Windows\(size=0, .*, expected two whole numbers of at least 1$"
    ):
        small_spec(windows=Windows(0))
    with pytest.raises(
        ModelError, match=r"^model\.windows: attention in windows does not support dropout, found 0\.1; set dropout"
    ):
        small_spec(windows=Windows(2), dropout=0.1)
    model = MiniViT.from_spec(small_spec(windows=Windows(2)))
    with pytest.raises(ModelError, match=r"^keep: a model with windows cannot leave out patches"):
        model.forward_features(torch.zeros(1, 3, 16, 16), keep=torch.zeros(1, 3, dtype=torch.int64))
    assert replace(model.spec.backbone, windows=None).window_of(0) is None
