"""The features of a labelled data set, computed once, with each rank computing its part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.config.probe import LABELS
from pipeline.config.views import IMAGE
from pipeline.models.bundle import Preprocess
from pipeline.probe.rows import Beat, Rows
from pipeline.stream.loader import EvalLoader
from pipeline.stream.source import Source
from pipeline.train.feed import on_device
from pipeline.train.inputs import normalised_views


def labelled_batches(
    source: Source,
    preprocess: Preprocess,
    *,
    batch_size: int,
    loader_workers: int,
    quarantine_path: Path | None,
) -> EvalLoader:
    """The images of a data set, preprocessed for a model, with their classes, in evaluation order.

    Transparent pixels get the background that the model was trained with; images are resized according to the data set,
    or to the model if the data set does not specify it.
    """
    config = source.config.model_copy(update={"background": preprocess.background})
    return EvalLoader(
        replace(source, config=config),
        channels=preprocess.channels,
        targets=(LABELS,),
        views=IMAGE,
        size=preprocess.image_size,
        plain=source.config.eval or preprocess.eval,
        rank=dist.get_rank(),
        world_size=dist.get_world_size(),
        batch_size=batch_size,
        loader_workers=loader_workers,
        quarantine_path=quarantine_path,
    )


@torch.no_grad()
def features_collective(
    embed: Callable[[Tensor], Tensor], batches: EvalLoader, preprocess: Preprocess, device: torch.device, beat: Beat
) -> Rows:
    """Features of this rank's good samples on `device`: `embed` maps normalised [B, C, H, W] to fp32 [B, D].

    Every rank calls `embed` equally often, even on batches of padding. `beat` is called for every batch.
    """
    features, labels = [], []
    with on_device(batches, device) as moved:
        for batch in moved:
            good = (batch.weights > 0) & (batch.targets["label"] >= 0)
            features.append(embed(normalised_views(batch, preprocess)["image"])[good].float())
            labels.append(batch.targets["label"][good])
            beat()
    return Rows(torch.cat(features), torch.cat(labels))
