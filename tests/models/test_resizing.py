from __future__ import annotations

from typing import Any

import pytest

from pipeline.config.data import PlainConfig
from pipeline.errors import ModelError
from pipeline.images.plain import spans
from pipeline.models.resizing import (
    crop_share,
    from_clip_config,
    from_hugging_face_config,
    from_timm_config,
    to_clip_config,
    to_timm_config,
)


@pytest.mark.parametrize("resize", ["squash", "shorter", "pad"])
def test_timms_words_there_and_back(resize: Any) -> None:
    how = PlainConfig(resize=resize, crop_pct=0.95, interpolation="bicubic")
    assert from_timm_config(to_timm_config(how)) == how


@pytest.mark.parametrize("resize", ["squash", "shorter", "pad"])
def test_open_clips_words_there_and_back(resize: Any) -> None:
    how = PlainConfig(resize=resize, interpolation="bilinear")
    assert from_clip_config(to_clip_config(how, (1, 2, 3))) == how


def test_what_timm_does_where_nothing_is_said() -> None:
    assert from_timm_config({}) == PlainConfig(resize="shorter", crop_pct=0.875, interpolation="bicubic")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, PlainConfig()),
        ({"do_resize": False}, PlainConfig()),
        (
            {"image_processor_type": "ViTImageProcessor", "size": {"height": 224, "width": 224}, "resample": 2},
            PlainConfig(interpolation="bilinear"),
        ),
        (
            {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 224}, "crop_size": 224},
            PlainConfig(resize="shorter", interpolation="bicubic"),
        ),
        (
            {"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": {"height": 224}, "resample": 3},
            PlainConfig(resize="shorter", crop_pct=crop_share(224, 256), interpolation="bicubic"),
        ),
        (
            {"feature_extractor_type": "DeiTFeatureExtractor"},
            PlainConfig(crop_pct=crop_share(224, 256), interpolation="bicubic"),
        ),
    ],
)
def test_what_transformers_does(settings: dict[str, Any], expected: PlainConfig) -> None:
    assert from_hugging_face_config(settings) == expected


@pytest.mark.parametrize(("kept", "resized"), [(224, 256), (224, 248), (384, 384), (336, 343), (28, 31)])
def test_a_crop_share_resizes_to_the_side_that_was_meant(kept: int, resized: int) -> None:
    how = PlainConfig(resize="shorter", crop_pct=crop_share(kept, resized), interpolation="bicubic")
    down, _ = spans((resized, resized), (kept, kept), how)
    assert down.stop - down.start == kept


@pytest.mark.parametrize(
    ("read", "settings", "expected"),
    [
        (from_timm_config, {"interpolation": "random"}, "eval.interpolation: found 'random'"),
        (from_clip_config, {"resize_mode": "zoom"}, "eval.resize: found 'zoom'"),
        (from_hugging_face_config, {"size": {"longest_edge": 3}}, "size: found {'longest_edge': 3}"),
        (from_hugging_face_config, {"resample": 9}, "resample: found 9, expected 0 to 5"),
    ],
)
def test_words_that_are_not_known(read: Any, settings: dict[str, Any], expected: str) -> None:
    if "longest_edge" in str(settings):
        settings = settings | {"do_center_crop": True}
    with pytest.raises(ModelError) as caught:
        read(settings)
    assert str(caught.value).startswith(expected)
