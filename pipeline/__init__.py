"""MiniViT pipeline: pretrain Vision Transformers from shards, fine-tune them stage by stage, export them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    from pipeline.stages.stream import StageStream
    from pipeline.tasks.pretrained import PretrainedMiniViT

__version__ = "0.1.0"
__all__ = ["__version__", "load_model", "stage_stream"]


def load_model(path: str | PathLike[str]) -> PretrainedMiniViT:
    """A trained model in eval mode, from an export, a stage folder or a run folder (its last finished stage).

    It carries `.preprocess` and `.classes`, and `.predict(images)` returns its task's predictions. Raises `ModelError`
    if there is no model.
    """
    from pipeline.models.bundle import load_bundle  # torch is imported only when a model is loaded
    from pipeline.models.find_bundle import find_bundle
    from pipeline.models.integrity import check_files
    from pipeline.tasks.pretrained import PretrainedMiniViT

    folder = find_bundle(path)
    check_files(folder)
    return PretrainedMiniViT.from_bundle(load_bundle(folder))


def stage_stream(
    config: str | PathLike[str],
    stage: str,
    *,
    rank: int = 0,
    world_size: int = 1,
    overrides: Sequence[str] = (),
) -> StageStream:
    """The batches that a training stage of a pipeline file trains on, for a training loop of your own.

    A `torch.utils.data.IterableDataset` of dictionaries, exact and resumable on any number of ranks; see `StageStream`.
    Built-in data sets are made first if they are missing. Raises `ConfigError` and `DataError`.
    """
    from pipeline.stages.stream import StageStream

    return StageStream(config, stage, rank=rank, world_size=world_size, overrides=overrides)
