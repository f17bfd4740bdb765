"""Checks a state dict against a spec, naming the tensor that does not fit or what the checkpoint seems to be."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.errors import ModelError
from pipeline.models.minivit import MiniViT
from pipeline.models.model_spec import ModelSpec
from pipeline.models.recognise import recognise


def expected_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor in the state dict of a spec, in order; nothing is allocated."""
    with torch.device("meta"):
        model = MiniViT.from_spec(spec, init="torch")
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def check_state(state: Mapping[str, Tensor], spec: ModelSpec, source: str) -> None:
    """Raise `ModelError`, naming the first missing, unknown or misshapen tensor; `source` names the state's origin."""
    expected = expected_shapes(spec)
    ours = any(name.startswith("transformer.layers.") for name in state)
    if not ours and (foreign := recognise(state)):
        raise ModelError(f"{source}: not a MiniViT; its tensor {foreign[0]!r} suggests {foreign[1]}")
    missing = [name for name in expected if name not in state]
    if missing:
        raise ModelError(f"{source}: lacks the tensor {missing[0]!r} ({len(missing)} missing) that its spec requires")
    unknown = sorted(state.keys() - expected.keys())
    if unknown:
        raise ModelError(
            f"{source}: found the tensor {unknown[0]!r} ({len(unknown)} such) that its spec does not have; the spec "
            "belongs to another model"
        )
    for name, shape in expected.items():
        if tuple(state[name].shape) != shape:
            found = list(state[name].shape)
            raise ModelError(f"{source}: the tensor {name!r} has shape {found}; its spec requires {list(shape)}")
