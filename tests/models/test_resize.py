from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from pipeline.models.resize import kernel_matrix, resize_matrix

lengths = st.integers(1, 40)


@given(lengths, lengths)
def test_equals_torchs_antialiased_bicubic(old: int, new: int) -> None:
    # Two equal columns: torch 2.14 mixes up samples of single-column images, whose memory layout is ambiguous.
    identity = torch.eye(old, dtype=torch.float64)[:, None, :, None].repeat(1, 1, 1, 2)
    expected = F.interpolate(identity, (new, 2), mode="bicubic", antialias=True, align_corners=False)
    np.testing.assert_allclose(resize_matrix(old, new), expected[:, 0, :, 0].T.numpy(), atol=1e-12)


@given(lengths)
def test_same_length_is_identity(length: int) -> None:
    np.testing.assert_allclose(resize_matrix(length, length), np.eye(length), atol=1e-12)


@given(st.integers(3, 20), st.integers(1, 3))
def test_linear_field_is_preserved_inside(old: int, factor: int) -> None:
    """A straight line stays the same straight line, away from the borders that the filter is cut off at."""
    line = (np.arange(old) + 0.5) / old
    new = old * factor
    resized = resize_matrix(old, new) @ line
    inside = slice(2 * factor, new - 2 * factor)
    np.testing.assert_allclose(resized[inside], ((np.arange(new) + 0.5) / new)[inside], atol=1e-12)


@given(st.integers(1, 16), st.integers(0, 16))
def test_kernel_answers_a_grown_patch_as_the_patch(old: int, growth: int) -> None:
    """FlexiViT's condition, exact when patches grow: <B x, pinv(B^T) w> = <x, w>."""
    new = old + growth
    rng = np.random.default_rng(old * 100 + new)
    patch, kernel = rng.normal(size=old), rng.normal(size=old)
    answer = (resize_matrix(old, new) @ patch) @ (kernel_matrix(old, new) @ kernel)
    np.testing.assert_allclose(answer, patch @ kernel, atol=1e-8)
