from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.train_stage import TrainStage
from pipeline.config.training import ResolutionConfig
from pipeline.config.views import ViewGroup
from pipeline.errors import ConfigError
from pipeline.models.variants import build_spec
from pipeline.stages.resolve import Branch, check_sizes
from pipeline.tasks.classification import Task as Classification
from pipeline.train.step_shapes import micro_batches_at, patch_at, step_shapes

SPEC = build_spec("nano", image_size=(32, 64), patch_size=(4, 8), num_classes=2).backbone


def stage(**resolution: Any) -> TrainStage:
    return TrainStage.model_validate(
        {
            "type": "pretrain",
            "model": {"variant": "nano"},
            "data": {"train": "train"},
            "duration": "1 epochs",
            "global_batch_size": 64,
            "resolution": resolution,
        }
    )


class Several(Classification):
    def view_groups(self, *, evaluation: bool = False) -> dict[str, ViewGroup]:
        return {"global": ViewGroup(2), "local": ViewGroup(4, (8, 12))}


def test_without_patch_sizes_the_patch_is_the_models() -> None:
    assert patch_at(3, (4, 8), ResolutionConfig(), seed=0) == (4, 8)


def test_patches_are_drawn_evenly_and_again_alike() -> None:
    resolution = ResolutionConfig(patch_sizes=[2, 4, 8])
    drawn = [patch_at(step, (4, 8), resolution, seed=5) for step in range(3000)]
    assert drawn == [patch_at(step, (4, 8), resolution, seed=5) for step in range(3000)]
    assert drawn != [patch_at(step, (4, 8), resolution, seed=6) for step in range(3000)]
    counts = [drawn.count(patch) for patch in ((2, 4), (4, 8), (8, 16))]
    assert sum(counts) == 3000
    assert min(counts) > 900


def test_shapes_are_all_pairs_after_the_models_own() -> None:
    assert step_shapes(stage(), SPEC) == [((32, 64), (4, 8))]
    shapes = step_shapes(stage(mode="random", sizes=[16, 32], patch_sizes=[4, 8]), SPEC)
    assert shapes[0] == ((32, 64), (4, 8))
    assert set(shapes) == {(size, patch) for size in ((16, 32), (32, 64)) for patch in ((4, 8), (8, 16))}
    assert len(shapes) == 4


@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 300), st.integers(1, 300))
def test_no_micro_batch_has_more_tokens_than_asked(down: int, across: int, samples: int, micro: int) -> None:
    size = (down * 8, across * 8)
    parts = micro_batches_at(size, (4, 8), SPEC, samples, micro)
    assert parts >= 1
    per_part = samples / parts
    assert per_part * math.prod((size[0] // 4, size[1] // 8)) <= micro * SPEC.num_patches + 1e-6


def test_a_finer_patch_takes_more_micro_batches() -> None:
    assert micro_batches_at((32, 64), (4, 8), SPEC, 16, None) == 1
    assert micro_batches_at((32, 64), (4, 8), SPEC, 16, 8) == 2
    assert micro_batches_at((32, 64), (2, 4), SPEC, 16, 8) == 8


def test_samples_of_several_views_take_more_micro_batches() -> None:
    views = {"global": ViewGroup(2), "local": ViewGroup(8, (16, 32))}  # as many patches as 2 + 8 / 4 images
    assert micro_batches_at((32, 64), (4, 8), SPEC, 16, 8, views) == 8
    assert micro_batches_at((32, 64), (4, 8), SPEC, 16, None, views) == 1
    assert micro_batches_at((16, 32), (4, 8), SPEC, 16, 8, views) == 5, "the views of a fixed size stay as they are"


def test_views_that_leave_pixels_over_are_reported_in_the_plan() -> None:
    several = stage().model_copy(update={"task": Several()})
    with pytest.raises(ConfigError, match=r"stages\.first\.task\.views\.local\.size: the width 12 is not a multiple"):
        check_sizes(Branch("first", "first", "nano", several), SPEC)


def test_shapes_of_a_patch_that_leaves_pixels_over_are_reported_in_the_plan() -> None:
    branch = Branch("first", "first", "nano", stage(patch_sizes=[4, 6]))
    with pytest.raises(ConfigError, match=r"stages\.first\.resolution\.patch_sizes: the height 32 is not a multiple"):
        check_sizes(branch, SPEC)
