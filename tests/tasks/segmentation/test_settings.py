from __future__ import annotations

import re
from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.errors import ModelError
from pipeline.models.model_spec import ModelSpec
from pipeline.models.spec import HeadSpec
from pipeline.models.variants import build_backbone
from pipeline.tasks.segmentation import HEAD, Task

BACKBONE = build_backbone("nano", image_size=32, patch_size=4)


def test_settings_become_the_head() -> None:
    assert Task().heads(BACKBONE, 6) == {HEAD: HeadSpec("linear", 6)}
    task = Task(head="conv", layers=[1, 3], head_options={"hidden": 32})
    assert task.heads(BACKBONE, 6) == {HEAD: HeadSpec("conv", 6, {"layers": [1, 3], "hidden": 32})}
    spec = ModelSpec(BACKBONE, task.heads(BACKBONE, 6), "segmentation")
    assert ModelSpec.from_dict(spec.to_dict()) == spec


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"head": "classifier"}, "one of conv, dpt, heat_maps, linear, mask_transformer ["),
        ({"head": "pyramid"}, "one of conv, dpt, heat_maps, linear, mask_transformer ["),
        ({"head": "unet"}, "one of conv, dpt, heat_maps, linear, mask_transformer ["),
        ({"layers": []}, "at least 1 item"),
        ({"head_options": {"hidden": 0}}, "greater than 0"),
        ({"inference": {"stride": 0}}, "greater than 0"),
        ({"inference": {"window": 32}}, "not permitted"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(said)):
        Task(**settings)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"layers": [4]}, "found layer 4, but the model's layers are 0 to 3"),
        ({"head_options": {"hidden": 4}}, "a linear head has no option 'hidden'"),
        ({"inference": {"size": 50}}, "the height 50 is not a multiple of the patch size 4; use 48 or 52"),
        ({"inference": {"stride": 16}}, "stride: windows have the model's size, so they only slide over larger images"),
        (
            {"inference": {"size": 64, "stride": 40}},
            "stride: found 40, which skips pixels between windows of 32 pixels",
        ),
    ],
)
def test_what_the_backbone_cannot_do_is_refused_in_a_sentence(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=re.escape(said)):
        Task(**settings).model_spec(BACKBONE, 6)
