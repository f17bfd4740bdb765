from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.errors import ModelError
from pipeline.models.drop_path import sample_keys
from pipeline.models.heads import head_kind
from pipeline.models.heads.simmim.module import SimMIMHead
from pipeline.models.masking import random_masking
from pipeline.models.model_spec import ModelSpec
from pipeline.models.spec import HeadSpec, TokenSchema, ViTSpec

BACKBONE = ViTSpec("test", 2, (4, 6), (4, 3), 40, 2, 2, 80, tokens=TokenSchema(mask=True, registers=1))
HEAD = HeadSpec("simmim")


def test_predicts_each_masked_patch_from_its_own_token() -> None:
    head, masking = SimMIMHead(HEAD, BACKBONE), random_masking(sample_keys(5, torch.arange(3)), (4, 6), 0.6)
    encoded = torch.randn(3, 2 + 24, 40, requires_grad=True)
    pixels = head(encoded, masking, (4, 3))
    assert pixels.shape == (*masking.masked.shape, 24)
    pixels[:, 0].sum().backward()
    assert encoded.grad is not None
    for gradient, number in zip(encoded.grad.abs().sum(dim=2), masking.masked[:, 0].tolist(), strict=True):
        assert gradient.nonzero().flatten().tolist() == [2 + number]


def test_size_and_work_are_those_of_the_module() -> None:
    head, kind, masking = SimMIMHead(HEAD, BACKBONE), head_kind("simmim"), random_masking(torch.arange(1), (4, 6), 0.5)
    assert kind.num_parameters(HEAD, BACKBONE) == sum(parameter.numel() for parameter in head.parameters())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        head(torch.randn(1, 2 + 24, 40), masking, (4, 3))
    assert kind.flops(HEAD, BACKBONE, (4, 6)) == 2 * counter.get_total_flops()


def test_a_model_without_mask_token_is_refused() -> None:
    without = replace(BACKBONE, tokens=TokenSchema())
    with pytest.raises(ModelError, match="mask_token: true"):
        ModelSpec(without, {"pixel_head": HEAD}, "simmim")
