"""What a training step chooses for the model, besides the images it passes on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from pipeline.models.minivit import MiniViT
from pipeline.models.spec import Pair


@contextmanager
def per_step(model: nn.Module, *, keys: Tensor, patch: Pair | None = None) -> Iterator[None]:
    """Within this context every MiniViT in `model` drops paths by `keys` and cuts images into patches of `patch`.

    `keys` (int64 [B], from `drop_path.sample_keys`) belong to the samples of the next batch; `patch` is (height, width)
    in pixels, by default the model's own. It goes around the call because engines and tasks stand between a step and
    the model, and hand on images alone. A backward pass may follow outside.
    """
    models = [module for module in model.modules() if isinstance(module, MiniViT)]
    for each in models:
        each.patch, each.transformer.drop_path.keys = patch or each.spec.backbone.patch, keys
    try:
        yield
    finally:
        for each in models:
            each.patch, each.transformer.drop_path.keys = each.spec.backbone.patch, None
