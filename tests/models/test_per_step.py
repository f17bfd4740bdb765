from __future__ import annotations

from collections.abc import Callable

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pipeline.models import MiniViT, build_spec
from pipeline.models.drop_path import sample_keys
from pipeline.models.per_step import per_step

SPEC = build_spec("nano", image_size=16, num_classes=5, depth=3, embed_dim=32, num_heads=2, drop_path=0.6)


@settings(max_examples=20)
@given(st.permutations(range(6)), st.integers(1, 5))
def test_outputs_of_a_training_step_follow_the_slots(order: list[int], cut: int) -> None:
    """Drop path treats a sample in the same way on any rank and in any micro-batch."""
    torch.manual_seed(0)
    model = MiniViT.from_spec(SPEC).train()
    images = torch.randn(6, 3, 16, 16)

    def outputs(slots: list[int]) -> torch.Tensor:
        with per_step(model, keys=sample_keys(7, torch.tensor(slots))):
            return model(images[slots])

    with torch.no_grad():
        split = torch.cat([outputs(order[:cut]), outputs(order[cut:])])
        torch.testing.assert_close(split, outputs(list(range(6)))[order], atol=1e-5, rtol=1e-5)


def test_it_reaches_a_model_within_a_model_and_ends(small_model: Callable[..., MiniViT]) -> None:
    model = small_model()
    outer = nn.Sequential(model, nn.ReLU())
    images = torch.randn(2, 3, 16, 16)
    before = outer(images)
    keys = sample_keys(0, torch.arange(2))
    try:
        with per_step(outer, keys=keys, patch=(8, 8)):
            assert model.forward_features(images).shape == (2, 5, 32)
            assert model.transformer.keys is keys
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert model.transformer.keys is None
    assert torch.equal(outer(images), before)


def test_a_step_at_another_patch_equals_surgery_and_trains_the_one_kernel(small_model: Callable[..., MiniViT]) -> None:
    from pipeline.models import adapt

    model = small_model()
    finer = build_spec("nano", image_size=16, patch_size=2, num_classes=5, depth=2, embed_dim=32, num_heads=2)
    state, _ = adapt(model.state_dict(), model.spec, finer)
    other = MiniViT.from_spec(finer).eval()
    other.load_state_dict(state)
    images = torch.randn(2, 3, 16, 16)
    with per_step(model, keys=sample_keys(0, torch.arange(2)), patch=(2, 2)):
        logits = model(images)
    torch.testing.assert_close(logits, other(images), atol=1e-5, rtol=1e-5)
    logits.square().sum().backward()
    assert model.patch_embed.proj.weight.grad is not None
    assert model.patch_embed.proj.weight.grad.abs().min() > 0
