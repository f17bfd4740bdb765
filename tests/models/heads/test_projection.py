from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.errors import ModelError
from pipeline.models.heads import head_kind
from pipeline.models.heads.base import Reads
from pipeline.models.heads.head import Features
from pipeline.models.heads.projection.module import Projection
from pipeline.models.minivit import MiniViT
from pipeline.models.model_spec import ModelSpec
from pipeline.models.spec import HeadSpec, ViTSpec

BACKBONE = ViTSpec("test", 2, (4, 6), (4, 3), 40, 2, 2, 80)
HEADS = [HeadSpec("projection", 16), HeadSpec("projection", 8, {"hidden": 24, "layers": 2, "patches": True})]


def features() -> Features:
    return Features(torch.randn(3, 25, 40), {}, (4, 6), 1)


@pytest.mark.parametrize("head", HEADS)
def test_size_and_work_are_those_of_the_module(head: HeadSpec) -> None:
    kind, module, seen = head_kind("projection"), Projection(head, BACKBONE), features()
    assert kind.num_parameters(head, BACKBONE) == sum(parameter.numel() for parameter in module.parameters())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        embeddings = module(seen)
        if head.options.get("patches"):
            assert module.project_patches(seen.patches).shape == (3, 24, 8)
    assert embeddings.shape == (3, head.outputs)
    assert 3 * kind.flops(head, BACKBONE, (4, 6)) == counter.get_total_flops()


def test_reads_no_more_than_it_projects() -> None:
    kind = head_kind("projection")
    assert [kind.reads(head, BACKBONE) for head in HEADS] == [Reads(num_tokens=1), Reads()]
    model = MiniViT.from_spec(ModelSpec(BACKBONE, {"projector": HEADS[0]}, "lejepa"))
    assert model(torch.randn(2, 2, 16, 18)).shape == (2, 16)


@pytest.mark.parametrize("options", [{"hidden": 0}, {"layers": 0}])
def test_impossible_widths_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ModelError, match=r"projection\.(hidden|layers): found 0, expected at least 1"):
        ModelSpec(BACKBONE, {"projector": HeadSpec("projection", 8, options)}, "lejepa")
