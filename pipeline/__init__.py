"""MiniViT pipeline: pretrain Vision Transformers from shards, fine-tune them stage by stage, hand them over."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from os import PathLike

    from pipeline.tasks.pretrained import PretrainedMiniViT

__version__ = "0.1.0"
__all__ = ["__version__", "load_model"]


def load_model(path: str | PathLike[str]) -> PretrainedMiniViT:
    """A trained model in eval mode, from an export, a stage folder or a run folder (its last finished stage).

    It carries `.preprocess` and `.classes`, and `.predict(images)` gives its task's predictions. Raises `ModelError`
    where there is no model.
    """
    from pipeline.tasks.pretrained import load_pretrained  # torch loads only when a model does

    return load_pretrained(path)
