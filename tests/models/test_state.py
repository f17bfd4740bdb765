from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from pipeline.errors import ModelError
from pipeline.models import MiniViT
from pipeline.models.state import check_state, expected_shapes

Make = Callable[..., MiniViT]


def test_expected_shapes_are_the_models(small_model: Make) -> None:
    model = small_model(registers=2, layer_scale=0.1)
    assert expected_shapes(model.spec) == {name: tuple(t.shape) for name, t in model.state_dict().items()}


def test_missing_unknown_and_misshapen_tensors_are_named(small_model: Make) -> None:
    model = small_model()
    state = model.state_dict()
    check_state(state, model.spec, "here")
    with pytest.raises(ModelError, match="here: lacks the tensor 'cls_token'"):
        check_state({k: v for k, v in state.items() if k != "cls_token"}, model.spec, "here")
    with pytest.raises(ModelError, match="here: found the tensor 'extra'"):
        check_state({**state, "extra": torch.zeros(1)}, model.spec, "here")
    with pytest.raises(ModelError, match=r"'cls_token' has shape \[1, 1, 3\]; its spec requires \[1, 1, 32\]"):
        check_state({**state, "cls_token": torch.zeros(1, 1, 3)}, model.spec, "here")


@pytest.mark.parametrize(
    ("key", "message"),
    [("layer1.0.conv1.weight", "a ResNet"), ("blocks.0.attn.qkv.weight", "a Vision Transformer in timm's layout")],
)
def test_foreign_checkpoints_are_recognised(small_model: Make, key: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        check_state({key: torch.zeros(1)}, small_model().spec, "here")
