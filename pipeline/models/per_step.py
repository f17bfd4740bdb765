"""Sets what a training step chooses for the model besides its images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from pipeline.models.encoder import Encoder
from pipeline.models.minivit import MiniViT
from pipeline.models.spec import Pair


@contextmanager
def per_step(model: nn.Module, *, keys: Tensor, patch: Pair | None = None) -> Iterator[None]:
    """Within this context every MiniViT in `model` is `keyed` by `keys` and cuts images into patches of `patch`.

    `keys` (int64 [B], from `drop_path.sample_keys`) belong to the samples of the next batch; `patch` is (height, width)
    in pixels, by default the model's own. This is a context because engines and tasks between a step and the model pass
    on only images. The backward pass may run outside of it.
    """
    models = [module for module in model.modules() if isinstance(module, MiniViT)]
    for each in models:
        each.patch = patch or each.spec.backbone.patch
    try:
        with keyed(model, keys):
            yield
    finally:
        for each in models:
            each.patch = each.spec.backbone.patch


@contextmanager
def keyed(model: nn.Module, keys: Tensor) -> Iterator[None]:
    """Within this context dropout and drop path in `model` use these keys, int64 [B], of the next batch."""
    encoders = [module for module in model.modules() if isinstance(module, Encoder)]
    before = [encoder.keys for encoder in encoders]
    for encoder in encoders:
        encoder.keys = keys
    try:
        yield
    finally:
        for encoder, keys_before in zip(encoders, before, strict=True):
            encoder.keys = keys_before
