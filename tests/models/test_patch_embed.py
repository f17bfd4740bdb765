from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from timm.layers import resample_patch_embed

from pipeline.models.patch_embed import PatchProjection, change_channels, patchify, resize_kernel, unpatchify


def kernel(patch: tuple[int, int], channels: int = 3) -> torch.Tensor:
    return torch.randn(5, channels, *patch, generator=torch.Generator().manual_seed(0))


def test_projection_is_the_convolution_with_its_gradients() -> None:
    ours = PatchProjection(3, 8, (4, 2))
    images = torch.randn(2, 3, 8, 6)
    stock = F.conv2d(images, ours.weight, ours.bias, stride=(4, 2)).flatten(2).transpose(1, 2)
    grads = [torch.autograd.grad(out.square().sum(), [ours.weight, ours.bias]) for out in (ours(images), stock)]
    torch.testing.assert_close(ours(images), stock, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(grads[0], grads[1], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(("old", "new"), [(16, 8), (8, 14), (14, 32), (4, 2), (4, 7)])
def test_kernel_resize_equals_timms(old: int, new: int) -> None:
    expected = resample_patch_embed(kernel((old, old)), [new, new])
    torch.testing.assert_close(resize_kernel(kernel((old, old)), (new, new)), expected, atol=1e-4, rtol=1e-3)


@given(st.tuples(st.integers(2, 6), st.integers(2, 6)), st.tuples(st.integers(0, 6), st.integers(0, 6)))
def test_tokens_of_resized_images_stay_when_the_patch_grows(patch: tuple[int, int], growth: tuple[int, int]) -> None:
    new = (patch[0] + growth[0], patch[1] + growth[1])
    image = torch.randn(1, 3, *patch, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    grown = F.interpolate(image, new, mode="bicubic", antialias=True)
    weight = kernel(patch).double()
    torch.testing.assert_close(F.conv2d(grown, resize_kernel(weight, new)), F.conv2d(image, weight), atol=1e-7, rtol=0)


@given(st.integers(1, 6), st.integers(1, 6))
def test_grey_images_give_the_same_tokens_in_any_channels(old: int, new: int) -> None:
    weight = kernel((4, 4), channels=old)
    grey = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    before = F.conv2d(grey.expand(-1, old, -1, -1), weight)
    after = F.conv2d(grey.expand(-1, new, -1, -1), change_channels(weight, new))
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)


def test_one_to_three_and_back_is_identity() -> None:
    weight = kernel((4, 4), channels=1)
    torch.testing.assert_close(change_channels(change_channels(weight, 3), 1), weight)


@given(
    st.integers(1, 4), st.tuples(st.integers(1, 3), st.integers(1, 3)), st.tuples(st.integers(1, 4), st.integers(1, 4))
)
def test_patches_put_together_are_the_image(channels: int, patch: tuple[int, int], grid: tuple[int, int]) -> None:
    images = torch.randn(2, channels, grid[0] * patch[0], grid[1] * patch[1])
    patches = patchify(images, patch)
    assert patches.shape == (2, grid[0] * grid[1], channels * patch[0] * patch[1])
    assert torch.equal(patches[1, -1], images[1, :, -patch[0] :, -patch[1] :].flatten())
    assert torch.equal(unpatchify(patches, patch, grid), images)
