"""Cuts images into patches and projects them.

Legend: B batch, C channels, (H, W) image, (p, q) patch, (h, w) grid, N = h * w, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.models.arithmetic import linear
from pipeline.models.resize import kernel_tensor
from pipeline.models.spec import Pair


class PatchProjection(nn.Conv2d):
    """The weights of `nn.Conv2d(C, D, kernel = stride = patch)`, applied as one matrix product.

    Patches do not overlap, so the convolution is a product of [B*N, C*p*q] with [C*p*q, D]. This is faster, forward
    and backward, and its output needs no transpose.
    """

    def __init__(self, channels: int, embed_dim: int, patch: Pair) -> None:
        super().__init__(channels, embed_dim, kernel_size=patch, stride=patch)

    def forward(self, images: Tensor, patch: Pair | None = None, keep: Tensor | None = None) -> Tensor:
        """[B, C, H, W] -> [B, N, D] in the dtype of the weights, by patches of `patch` pixels (default: the kernel's).

        For another patch the kernel is resized on the fly, in fp32, so that one kernel trains at every size (FlexiViT).
        `keep`, int64 [B, n], holds the indices of the patches to project: [B, n, D].
        """
        p, q = patch or self.kernel_size
        weight = self.weight
        if (p, q) != tuple(self.kernel_size):
            weight = resize_kernel(weight, (p, q), torch.float32)
        patches = patchify(images.to(weight.dtype), (p, q))
        if keep is not None:
            patches = patches.take_along_dim(keep[..., None], dim=1)
        assert self.bias is not None
        return linear(patches, weight.flatten(1), self.bias)


class PatchEmbed(nn.Module):
    """Holds the projection under the tutorial's key, `patch_embed.proj`."""

    def __init__(self, channels: int, embed_dim: int, patch: Pair) -> None:
        super().__init__()
        self.proj = PatchProjection(channels, embed_dim, patch)

    def forward(self, images: Tensor, patch: Pair | None = None, keep: Tensor | None = None) -> Tensor:
        """[B, C, H, W] -> [B, N, D], or [B, n, D] of the patches to `keep`, int64 [B, n]."""
        tokens: Tensor = self.proj(images, patch, keep)
        return tokens


def patchify(images: Tensor, patch: Pair) -> Tensor:
    """[B, C, H, W] -> [B, N, C*p*q], row by row of the grid."""
    (p, q), (batch, channels, height, width) = patch, images.shape
    patches = images.reshape(batch, channels, height // p, p, width // q, q)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * p * q)


def unpatchify(patches: Tensor, patch: Pair, grid: Pair) -> Tensor:
    """[B, N, C*p*q] -> [B, C, H, W], the inverse of `patchify`."""
    (p, q), (h, w) = patch, grid
    return (
        patches.reshape(len(patches), h, w, -1, p, q).permute(0, 3, 1, 4, 2, 5).reshape(len(patches), -1, h * p, w * q)
    )


def resize_kernel(weight: Tensor, new_patch: Pair, dtype: torch.dtype = torch.float64) -> Tensor:
    """[D, C, p, q] -> [D, C, p', q']: pseudo-inverse resize of a patch kernel (FlexiViT, Beyer et al. 2023).

    Computed in `dtype`, differentiable.
    """
    old_patch = (weight.shape[2], weight.shape[3])
    if old_patch == tuple(new_patch):
        return weight
    down, across = (
        kernel_tensor(old, new, dtype, weight.device) for old, new in zip(old_patch, new_patch, strict=True)
    )
    return torch.einsum("ap,bq,dcpq->dcab", down, across, weight.to(dtype)).to(weight.dtype)


def change_channels(weight: Tensor, channels: int) -> Tensor:
    """[D, C, p, q] -> [D, C', p, q], so that a grey image, repeated over the channels, gives the same tokens as before.

    To one channel: the sum over channels. From one to n, or n to m: the channels repeated in turn, scaled by C / C'.
    """
    old = weight.shape[1]
    if channels == old:
        return weight
    if channels == 1:
        return weight.sum(dim=1, keepdim=True)
    cycled = weight[:, torch.arange(channels) % old]
    total, kept = weight.sum(dim=1, keepdim=True), cycled.sum(dim=1, keepdim=True)
    # If channels repeat unevenly (3 -> 4), spread the difference so that the response to grey stays exact.
    scaled = cycled * (old / channels)
    return scaled + (total - kept * (old / channels)) / channels
