from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from pipeline.errors import ModelError
from pipeline.models import ModelSpec, TokenSchema, ViTSpec

Make = Callable[..., ModelSpec]


def test_image_size_and_positions(small_spec: Make) -> None:
    spec = small_spec(image_size=(16, 24), registers=3).backbone
    assert spec.image_size == (16, 24)
    assert spec.grid == (4, 6)
    assert spec.num_positions == 24 + 1 + 3
    assert dataclasses.replace(spec, tokens=TokenSchema(positions_cover_prefix=False)).num_positions == 24


def test_unknown_field_is_named(small_spec: Make) -> None:
    with pytest.raises(ModelError, match="'colour'"):
        ViTSpec.from_dict({**small_spec().backbone.to_dict(), "colour": 1})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 5}, "model.num_heads: 5 heads do not divide embed_dim = 32; use 4 heads"),
        ({"tokens": TokenSchema(cls=False)}, "class token"),
        ({"pool": "max"}, "'max', expected one of cls, avg"),
        ({"depth": 0}, "model.depth: found 0"),
        ({"dropout": 1.0}, "model.dropout"),
        ({"embed_dim": 6, "positions": "sincos"}, "divisible by 4"),
        ({"tokens": TokenSchema(dist=True), "pool": "avg"}, "distillation"),
    ],
)
def test_impossible_specs_say_what_to_change(small_spec: Make, change: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        dataclasses.replace(small_spec().backbone, **change)


@pytest.mark.parametrize(
    ("size", "message"), [((18, 16), "height 18.*use 16 or 20"), ((16, 2), "width 2 is smaller than one patch of 4")]
)
def test_image_must_be_whole_patches(small_spec: Make, size: tuple[int, int], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        small_spec().backbone.grid_for(size)
