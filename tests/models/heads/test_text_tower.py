from __future__ import annotations

import pytest
import torch

from pipeline.errors import ModelError
from pipeline.models.heads.text_tower.module import TextTower
from pipeline.models.heads.text_tower.shape import text_length
from pipeline.models.model_costs import head_parameters
from pipeline.models.model_spec import ModelSpec
from pipeline.models.spec import HeadSpec
from pipeline.models.variants import build_backbone

BACKBONE = build_backbone("nano", image_size=8, drop_path=0.5)
OPTIONS = {"tokens": 20, "length": 6, "dim": 16, "depth": 2, "num_heads": 2}
HEAD = HeadSpec("text_tower", 12, OPTIONS)
END = 9


@pytest.fixture
def tower() -> TextTower:
    torch.manual_seed(0)
    return TextTower(HEAD, BACKBONE).train()


def test_a_text_is_read_up_to_its_first_end(tower: TextTower) -> None:
    """Tokens after the end token change nothing, be they padding or another end token."""
    tokens = torch.tensor([[1, 2, END, 0, 0, 0], [1, 2, END, 7, END, 3], [1, 2, 3, END, 0, 0]], dtype=torch.int32)
    first, second, third = tower(tokens, END)
    torch.testing.assert_close(first, second)
    torch.testing.assert_close(tower(tokens[:1, :3], END)[0], first)
    assert (first - third).abs().max() > 1e-3


def test_what_comes_before_matters(tower: TextTower) -> None:
    tokens = torch.tensor([[1, 2, END, 0, 0, 0], [2, 1, END, 0, 0, 0]])
    first, second = tower(tokens, END)
    assert (first - second).abs().max() > 1e-3


def test_its_size_is_known_without_it(tower: TextTower) -> None:
    spec = ModelSpec(BACKBONE, {"text": HEAD})
    assert head_parameters(spec, "text") == sum(parameter.numel() for parameter in tower.parameters())
    assert (text_length(spec.heads), text_length({})) == (6, None)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ModelError, match=r"^text.num_heads: 3 heads do not divide embed_dim = 16"):
        ModelSpec(BACKBONE, {"text": HeadSpec("text_tower", 12, {**OPTIONS, "num_heads": 3})})
    with pytest.raises(ModelError, match=r"^text.depth: found 0, expected at least 1"):
        ModelSpec(BACKBONE, {"text": HeadSpec("text_tower", 12, {**OPTIONS, "depth": 0})})
