"""Image size, patch and micro-batches of a step as pure functions of it, so that all ranks and restarts agree."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

from pipeline.config.train_stage import TrainStage
from pipeline.config.training import ResolutionConfig
from pipeline.config.views import IMAGE, ViewGroup
from pipeline.models.spec import Pair, ViTSpec, whole_patches
from pipeline.stream.resolution import in_proportion
from pipeline.train.seeds import PATCH, derive_seed


def step_shapes(stage: TrainStage, spec: ViTSpec) -> list[tuple[Pair, Pair]]:
    """All (image size, patch) pairs, each (height, width) in pixels, that steps of a stage may use.

    The model's own pair, which evaluation uses, comes first. Sizes given as one number are heights; widths keep the
    model's aspect ratio.
    """
    sizes = [in_proportion(size, spec.image_size) for size in stage.resolution.sizes] or [spec.image_size]
    patches = [in_proportion(size, spec.patch) for size in stage.resolution.patch_sizes] or [spec.patch]
    return list(dict.fromkeys([(spec.image_size, spec.patch), *itertools.product(sizes, patches)]))


def patch_at(step: int, base_patch: Pair, resolution: ResolutionConfig, seed: int) -> Pair:
    """Patch of a step, (height, width) in pixels: one of `patch_sizes`, drawn from (seed, step), or the model's own.

    A patch size is a height; the width keeps the aspect ratio of `base_patch`.
    """
    if not resolution.patch_sizes:
        return base_patch
    return in_proportion(
        resolution.patch_sizes[derive_seed(seed, PATCH, step) % len(resolution.patch_sizes)], base_patch
    )


def micro_batches_at(
    size: Pair,
    patch: Pair,
    spec: ViTSpec,
    rank_samples: int,
    micro_batch_size: int | None,
    views: Mapping[str, ViewGroup] = IMAGE,
) -> int:
    """Backward passes of a step on images of `size` px: enough for the fullest rank, and more for more tokens.

    `micro_batch_size` counts images with the model's own grid: a micro-batch holds fewer samples if they have multiple
    views, and thus more patches in total. None means all `rank_samples` of a rank at once.
    """
    if micro_batch_size is None:
        return 1
    patches = sum(group.count * math.prod(whole_patches(group.size or size, patch)) for group in views.values())
    growth = max(patches / spec.num_patches, 1.0)
    return math.ceil(rank_samples * growth / micro_batch_size)
