from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.models import MiniViT, build_spec
from pipeline.models.arithmetic.cpu import draws
from pipeline.models.drop_path import sample_keys
from pipeline.models.dropout import SITES, layer_keys
from pipeline.models.dropout import dropout as drop
from pipeline.models.per_step import keyed

KEYS = sample_keys(3, torch.arange(6))


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_values_are_left_out_at_the_rate_and_the_expectation_stays(rate: float) -> None:
    x = torch.ones(6, 50, 401)
    y = drop(x, KEYS, rate)
    assert (y == 0).float().mean().item() == pytest.approx(rate, abs=0.005)
    assert y.unique().tolist() == pytest.approx([0.0, 1 / (1 - rate)], rel=1e-4)
    assert y.mean(dim=(1, 2)).tolist() == pytest.approx([1.0] * 6, abs=0.05)


def test_nothing_is_left_out_without_keys_or_at_rate_0() -> None:
    x = torch.randn(6, 3)
    assert drop(x, None, 0.5) is x
    assert drop(x, KEYS, 0.0) is x
    assert drop(x, KEYS, 1 - 1e-9).isfinite().all()


@given(st.permutations(range(6)), st.integers(1, 5), st.integers(1, 70))
def test_a_samples_mask_depends_on_its_key_alone(order: list[int], cut: int, count: int) -> None:
    x = torch.ones(6, count)
    parts = [drop(x[:cut], KEYS[order[:cut]], 0.5), drop(x[cut:], KEYS[order[cut:]], 0.5)]
    assert torch.equal(torch.cat(parts), drop(x, KEYS, 0.5)[order])


def test_pieces_are_the_same_as_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.ones(6, 1003)
    expected = drop(x, KEYS, 0.3)
    for words in (1, 100, 600):
        monkeypatch.setattr(draws, "PIECE_WORDS", words)
        assert torch.equal(drop(x, KEYS, 0.3), expected)
    monkeypatch.setattr(draws, "in_pieces", lambda: False)
    assert torch.equal(drop(x, KEYS, 0.3), expected)


def test_sites_layers_and_samples_draw_independently() -> None:
    keys = torch.cat([layer_keys(KEYS, layer).flatten() for layer in range(3)])
    assert len(keys.unique()) == 3 * len(SITES) * 6
    masks = (drop(torch.ones(len(keys), 4000), keys, 0.5) > 0).double()
    correlation = torch.corrcoef(masks) - torch.eye(len(keys))
    assert correlation.abs().max() < 0.09
    shifted = torch.corrcoef(torch.cat([masks[:8], masks[:8].roll(1, dims=1), masks[:8].roll(4, dims=1)]))
    assert (shifted - torch.eye(24)).abs().max() < 0.09


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_left_out_has_no_gradient(dtype: torch.dtype) -> None:
    x = torch.randn(6, 5, 7).to(dtype).requires_grad_()
    y = drop(x, KEYS, 0.5)
    y.sum().backward()
    assert x.grad is not None
    assert y.dtype == dtype
    assert torch.equal(x.grad, (y != 0) * torch.tensor(2.0, dtype=dtype))


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_every_place_of_a_layer_drops(small_model: Callable[..., MiniViT], norm: str) -> None:
    """Attention weights, attention's output, hidden values and the feed-forward's output each have their own mask."""
    model = small_model(norm=norm, dropout=0.5, depth=1, activation="relu").train()
    layer, seen = model.transformer.layers[0], []

    def spy(x: torch.Tensor, keys: torch.Tensor | None, rate: float) -> torch.Tensor:
        seen.append((tuple(x.shape), rate))
        return drop(x, keys, rate)

    with pytest.MonkeyPatch.context() as patch:
        for module in ("self_attention", "encoder", "layers"):
            patch.setattr(f"pipeline.models.{module}.dropout", spy)
        layer(torch.randn(6, 9, 32), None, None, layer_keys(KEYS, 0))
    assert seen == [((6, 2, 9, 9), 0.5), ((6, 9, 32), 0.5), ((6, 9, 128), 0.5), ((6, 9, 32), 0.5)]


@settings(max_examples=15, deadline=None)
@given(st.permutations(range(6)), st.integers(1, 5))
def test_outputs_of_a_training_step_follow_the_slots(order: list[int], cut: int) -> None:
    torch.manual_seed(0)
    spec = build_spec("nano", image_size=16, num_classes=5, depth=2, embed_dim=32, num_heads=2, dropout=0.4)
    model, images = MiniViT.from_spec(spec).train(), torch.randn(6, 3, 16, 16)

    def outputs(slots: list[int]) -> torch.Tensor:
        with keyed(model, KEYS[slots]):
            output: torch.Tensor = model(images[slots])
            return output

    with torch.no_grad():
        parts = torch.cat([outputs(order[:cut]), outputs(order[cut:])])
        torch.testing.assert_close(parts, outputs(list(range(6)))[order], atol=1e-5, rtol=1e-5)
        assert not torch.allclose(parts, model(images[order]))  # without keys it is chance


def test_keys_end_where_they_began(small_model: Callable[..., MiniViT]) -> None:
    model = small_model()
    with keyed(model, KEYS):
        with keyed(model, KEYS[:2]):
            assert model.transformer.keys is not None
            assert len(model.transformer.keys) == 2
        assert model.transformer.keys is KEYS
    assert model.transformer.keys is None
