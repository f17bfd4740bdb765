from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable

import pytest

from pipeline.errors import ModelError
from pipeline.models import HeadSpec, ModelSpec

Make = Callable[..., ModelSpec]


def test_round_trip_through_json(small_spec: Make) -> None:
    spec = small_spec(image_size=(16, 24), registers=3, layer_scale=0.1, mask_token=True, dist_token=True)
    spec = dataclasses.replace(spec, task="another")
    assert ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_format_1_is_a_classifier(small_spec: Make) -> None:
    spec = small_spec(dist_token=True)
    assert ModelSpec.from_dict({**spec.backbone.to_dict(), "num_classes": 5}) == spec
    assert list(spec.heads) == ["mlp_head", "dist_head"]


def test_missing_field_is_named(small_spec: Make) -> None:
    raw = small_spec().to_dict()
    del raw["backbone"]["grid"]
    with pytest.raises(ModelError, match="grid"):
        ModelSpec.from_dict(raw)
    with pytest.raises(ModelError, match="heads"):
        ModelSpec.from_dict({"backbone": small_spec().backbone.to_dict(), "task": "classification"})


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ({"mlp_head": HeadSpec("clasifier", 5)}, "'clasifier' is not a kind of head; did you mean 'classifier'"),
        ({"mlp_head": HeadSpec("classifier", 0)}, "model.num_classes: found 0, expected at least 1"),
        ({"dist_head": HeadSpec("distillation", 5)}, "needs a distillation token as well as a class token"),
    ],
)
def test_heads_that_do_not_fit_are_refused(small_spec: Make, heads: dict[str, HeadSpec], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        ModelSpec(small_spec().backbone, heads)


def test_heads_that_do_not_fit_each_other_are_refused(small_spec: Make) -> None:
    both = small_spec(dist_token=True)
    with pytest.raises(ModelError, match="a distillation head needs the head 'mlp_head', which the model lacks"):
        ModelSpec(both.backbone, {"dist_head": both.heads["dist_head"]})
    with pytest.raises(ModelError, match=r"different numbers of classes \(mlp_head 5, dist_head 4\)"):
        ModelSpec(both.backbone, both.heads | {"dist_head": HeadSpec("distillation", 4)})


def test_a_classifier_reads_what_its_pool_needs(small_spec: Make) -> None:
    reads = [small_spec(**options).reads.num_tokens for options in ({}, {"dist_token": True}, {"pool": "avg"})]
    assert reads == [1, 2, None]
    assert ModelSpec(small_spec().backbone, {}).reads == ((), None)
