"""Bicubic antialiased resizing of one axis as a matrix.

A separable resize is one small matrix per axis. The matrices serve position grids (apply them) and patch kernels (apply
their pseudo-inverses), are differentiable, and depend only on the two lengths, so they can be cached forever.
The weights equal `torch.nn.functional.interpolate(mode="bicubic", antialias=True, align_corners=False)`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch

from pipeline.models.tracing import is_traced

# Keys' cubic with a = -0.5, which torch and Pillow use when they antialias (without antialiasing torch takes -0.75).
CUBIC_A = -0.5


@lru_cache(maxsize=1024)
def resize_matrix(old: int, new: int) -> np.ndarray:
    """[new, old] float64: row i holds the weights of the old samples in new sample i; rows sum to 1."""
    scale = old / new
    stretch = max(scale, 1.0)  # shrinking widens the filter, so that every old sample counts
    centres = (np.arange(new) + 0.5) * scale  # in units of old samples
    distance = np.abs(np.arange(old)[None, :] + 0.5 - centres[:, None]) / stretch
    weights = _cubic(distance)
    return _frozen(weights / weights.sum(axis=1, keepdims=True))


@lru_cache(maxsize=1024)
def kernel_matrix(old: int, new: int) -> np.ndarray:
    """[new, old] float64: pseudo-inverse resize of one axis of a patch kernel (FlexiViT, Beyer et al. 2023).

    With B the matrix that resizes a patch from old to new, this is pinv(B^T): the kernel's response to a patch resized
    by B is as close as possible to its response to the patch itself, and equal to it if the patch grows.
    """
    return _frozen(np.linalg.pinv(resize_matrix(old, new).T))


def resize_tensor(old: int, new: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """`resize_matrix` as a cached tensor, so steps at another size copy nothing to the device. Do not write to it."""
    return _tensor(resize_matrix, old, new, dtype, device)


def graph_matrix(old: int, new: int, device: torch.device) -> torch.Tensor:
    """`resize_matrix` in fp32 as graph operators, for a `new` known only at run time."""
    places = torch.arange(new, dtype=torch.float32, device=device)
    scale = old / (places[-1:] + 1)
    distance = (torch.arange(old, device=device)[None, :] + 0.5 - ((places + 0.5) * scale)[:, None]).abs()
    x = distance / scale.clamp(min=1)
    near = ((CUBIC_A + 2) * x - (CUBIC_A + 3)) * x * x + 1
    far = CUBIC_A * (((x - 5) * x + 8) * x - 4)
    weights = torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
    return weights / weights.sum(dim=1, keepdim=True)


def kernel_tensor(old: int, new: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """`kernel_matrix` as a cached tensor. Do not write to it."""
    return _tensor(kernel_matrix, old, new, dtype, device)


def _tensor(
    matrix: Callable[[int, int], np.ndarray], old: int, new: int, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    make = _new_tensor if is_traced() else _kept_tensor  # tensors created during tracing must not be cached
    return make(matrix, old, new, dtype, device)


def _new_tensor(
    matrix: Callable[[int, int], np.ndarray], old: int, new: int, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    with torch.inference_mode(False):  # otherwise training could not use a tensor created in inference mode
        return torch.tensor(matrix(old, new), dtype=dtype, device=device)


_kept_tensor = lru_cache(maxsize=1024)(_new_tensor)


def _cubic(x: np.ndarray) -> np.ndarray:
    near = (CUBIC_A + 2) * x**3 - (CUBIC_A + 3) * x**2 + 1
    far = CUBIC_A * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _frozen(matrix: np.ndarray) -> np.ndarray:
    matrix.setflags(write=False)
    return matrix
