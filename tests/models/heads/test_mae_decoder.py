from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pipeline.errors import ModelError
from pipeline.models.drop_path import sample_keys
from pipeline.models.heads import head_kind
from pipeline.models.heads.mae_decoder.module import MAEDecoder
from pipeline.models.heads.mae_decoder.shape import decoder_flops, decoder_spec, mae_decoder
from pipeline.models.masking import Masking, random_masking
from pipeline.models.model_spec import ModelSpec
from pipeline.models.spec import HeadSpec, Pair, TokenSchema, ViTSpec

BACKBONE = ViTSpec(
    variant="test",
    channels=2,
    grid=(4, 6),
    patch=(4, 3),
    embed_dim=40,
    depth=6,
    num_heads=2,
    mlp_dim=80,
    tokens=TokenSchema(registers=2),
)


def decoder_of(dim: int = 24, depth: int = 2) -> MAEDecoder:
    torch.manual_seed(0)
    return MAEDecoder(mae_decoder(BACKBONE, dim, depth), BACKBONE)


def masking_of(grid: Pair, images: int = 3) -> Masking:
    return random_masking(sample_keys(5, torch.arange(images)), grid, 0.75)


@pytest.mark.parametrize(("grid", "patch"), [((4, 6), (4, 3)), ((3, 3), (4, 3)), ((8, 2), (2, 6))])
def test_predicts_the_masked_patches_of_any_grid(grid: Pair, patch: Pair) -> None:
    masking = masking_of(grid)
    visible = torch.randn(3, 3 + masking.visible.shape[1], 40)
    pixels = decoder_of()(visible, masking, grid, patch)
    assert pixels.shape == (*masking.masked.shape, 2 * patch[0] * patch[1])


def test_a_prediction_belongs_to_the_place_of_its_patch() -> None:
    """In whatever order the patches are listed."""
    decoder, masking = decoder_of().eval(), masking_of((4, 6))
    visible = torch.randn(3, 3 + masking.visible.shape[1], 40)
    of_masked, of_visible = torch.randperm(masking.masked.shape[1]), torch.randperm(masking.visible.shape[1])
    other = Masking(masking.masked[:, of_masked], masking.visible[:, of_visible])
    shuffled = torch.cat([visible[:, :3], visible[:, 3:][:, of_visible]], dim=1)
    expected = decoder(visible, masking, (4, 6), (4, 3))[:, of_masked]
    assert torch.allclose(decoder(shuffled, other, (4, 6), (4, 3)), expected, atol=1e-5)
    assert expected.std(dim=1).min() > 1e-4, "places are told apart"


def test_every_visible_token_has_a_say() -> None:
    decoder, masking = decoder_of(depth=1), masking_of((4, 6))
    visible = torch.randn(3, 3 + masking.visible.shape[1], 40, requires_grad=True)
    decoder(visible, masking, (4, 6), (4, 3)).square().sum().backward()
    assert visible.grad is not None
    assert visible.grad.abs().sum(dim=2).min() > 0


@pytest.mark.parametrize(("dim", "depth"), [(24, 1), (64, 3)])
def test_size_and_work_are_those_of_the_module(dim: int, depth: int) -> None:
    head, decoder, masking = mae_decoder(BACKBONE, dim, depth), decoder_of(dim, depth), masking_of((4, 6), images=1)
    parameters = sum(parameter.numel() for parameter in decoder.parameters())
    assert head_kind("mae_decoder").num_parameters(head, BACKBONE) == parameters
    # torch's counter does not know the CPU's fused attention; the plain one is the same products.
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        decoder(torch.randn(1, 3 + 6, 40), masking, (4, 6), (4, 3))
    assert decoder_flops(head, BACKBONE, visible=6, masked=18) == counter.get_total_flops()


@pytest.mark.parametrize(("dim", "heads"), [(32, 1), (96, 3), (512, 16), (20, 1), (100, 2)])
def test_its_attention_heads_are_as_wide_as_the_papers(dim: int, heads: int) -> None:
    assert decoder_spec(mae_decoder(BACKBONE, dim), BACKBONE).num_heads == heads


def test_is_light_by_default() -> None:
    assert mae_decoder(BACKBONE).options == {"dim": 20, "depth": 2}
    assert mae_decoder(replace(BACKBONE, depth=2, embed_dim=42)).options == {"dim": 24, "depth": 1}


@pytest.mark.parametrize(
    ("options", "fault"), [({"dim": 30, "depth": 1}, "multiple of 4"), ({"dim": 32, "depth": 0}, "at least one layer")]
)
def test_impossible_decoders_are_refused(options: dict[str, int], fault: str) -> None:
    with pytest.raises(ModelError, match=fault):
        ModelSpec(BACKBONE, {"decoder": HeadSpec("mae_decoder", options=options)}, "mae")
