from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pipeline.tasks.segmentation.windows import starts, windowed_logits

PATCH = (4, 4)


def patch_means(images: Tensor) -> Tensor:
    """A model that sees no farther than a patch."""
    return F.avg_pool2d(images, PATCH)


def half_patch_means(images: Tensor) -> Tensor:
    """The same with four cells in each patch."""
    return F.avg_pool2d(images, (2, 2))


def image(height: int, width: int) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("height", "width"), [(32, 32), (40, 24), (16, 60), (16, 16), (8, 40)])
@pytest.mark.parametrize("stride", [4, 7, 8, 16])
@pytest.mark.parametrize("model", [patch_means, half_patch_means])
def test_windows_change_nothing_for_a_model_that_sees_only_patches(
    height: int, width: int, stride: int, model: Callable[[Tensor], Tensor]
) -> None:
    images = image(height, width)
    found = windowed_logits(model, images, (16, 16), (stride, stride), PATCH)
    torch.testing.assert_close(found, model(images))


def test_overlaps_are_averaged() -> None:
    """A model that answers with its window's number: where two overlap, the mean of both stands."""
    calls: list[int] = []

    def number(window: Tensor) -> Tensor:
        calls.append(len(calls))
        return torch.full((1, 1, 4, 4), float(calls[-1]))

    found = windowed_logits(number, torch.zeros(1, 3, 16, 24), (16, 16), (8, 8), PATCH)
    assert found[0, 0, 0].tolist() == [0, 0, 0.5, 0.5, 1, 1]
    assert len(calls) == 2


def test_an_image_no_larger_than_a_window_is_seen_once() -> None:
    seen = []
    windowed_logits(lambda x: seen.append(tuple(x.shape)) or patch_means(x), image(8, 16), (16, 16), (8, 8), PATCH)
    assert seen == [(2, 3, 8, 16)]


@given(st.integers(1, 40), st.integers(1, 10), st.integers(1, 60), st.sampled_from([1, 4, 16]))
def test_windows_cover_the_axis_at_whole_patches(cells: int, window: int, stride: int, patch: int) -> None:
    window = min(window, cells)
    found = starts(cells * patch, window * patch, stride, patch)
    covered = {cell for start in found for cell in range(start // patch, start // patch + window)}
    gaps = stride // patch > window  # strides that skip pixels are the user's choice
    assert gaps or covered == set(range(cells))
    assert all(start % patch == 0 for start in found)
    assert found[-1] + window * patch == cells * patch
    assert found == sorted(set(found))
