from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pipeline.models.heads._pixels import PixelProjection
from pipeline.models.patch_embed import unpatchify
from pipeline.models.spec import Pair


@pytest.mark.parametrize("patch", [(2, 3), (8, 12), (4, 4), (4, 6)])
def test_another_patch_is_the_resized_prediction(patch: Pair) -> None:
    projection, tokens = PixelProjection(8, 3, (4, 6)), torch.randn(2, 5, 8)
    own = projection(tokens).view(10, 1, -1)
    images = unpatchify(own, (4, 6), (1, 1))  # each patch as an image
    expected = F.interpolate(images, size=patch, mode="bicubic", antialias=True)
    found = unpatchify(projection(tokens, patch).view(10, 1, -1), patch, (1, 1))
    assert torch.allclose(found, expected, atol=1e-5)


def test_its_weights_learn_at_every_patch() -> None:
    projection = PixelProjection(8, 1, (4, 4))
    projection(torch.randn(2, 5, 8), (2, 2)).square().sum().backward()
    assert projection.weight.grad is not None
    assert projection.weight.grad.abs().sum(dim=1).min() > 0
