"""Cost of masked pretraining: an encoder that sees a quarter of the patches, and a light decoder."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor

from pipeline.models.bundle import Preprocess
from pipeline.models.costs import backbone_flops
from pipeline.models.drop_path import sample_keys
from pipeline.models.masking import random_masking
from pipeline.models.minivit import MiniViT
from pipeline.models.model_spec import ModelSpec
from pipeline.models.variants import build_backbone
from pipeline.tasks.mae import Task
from pipeline.train.device import precision_dtype

BACKWARD = 2  # times the products of the forward pass


def measure(
    variant: str, *, image_size: int, batch_size: int, threads: int, rounds: int, precision: str
) -> dict[str, Any]:
    """Forward and backward on the CPU of the encoder on all patches, on the visible ones, and of the whole task.

    They alternate in one process; seconds are medians. Shares of tokens, of the products' operations and of seconds
    are relative to the encoder on all patches. Excludes the optimiser, which costs the same for all.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    task, dtype = Task(), precision_dtype(precision)
    backbone = build_backbone(variant, image_size=image_size)
    spec = ModelSpec(backbone, task.heads(backbone, 0), task.type)
    model = MiniViT.from_spec(spec).to(dtype)
    module = task.module(model, [], Preprocess((0.5,) * 3, (0.2,) * 3, 3, backbone.image_size))
    images = torch.randn(batch_size, 3, image_size, image_size).to(dtype)
    keys = sample_keys(0, torch.arange(batch_size))
    visible = random_masking(keys, backbone.grid, task.mask_ratio).visible
    passes: dict[str, Callable[[], Tensor]] = {
        "encoder_on_all": lambda: model.forward_features(images).float().square().mean(),
        "encoder_on_visible": lambda: model.forward_features(images, keep=visible).float().square().mean(),
        "task": lambda: module({"image": images}, {}, torch.ones(batch_size), {"image": keys}).losses.sum(),
    }
    medians = median_seconds(model, passes, rounds)
    everything = backbone_flops(backbone)
    flops = {
        "encoder_on_all": everything,
        "encoder_on_visible": task.encoder_flops(backbone, backbone.grid, backbone.patch),
        "task": task.forward_flops(spec, backbone.image_size, backbone.patch),
    }
    tokens = prod(backbone.grid) + backbone.tokens.num_prefix
    return {
        "token_share": task.encoder_tokens(spec, backbone.image_size, backbone.patch) / tokens,
        **{
            name: {
                "seconds": medians[name],
                "images_per_s": batch_size / medians[name],
                "gflops_per_image": (1 + BACKWARD) * flops[name] / 1e9,
                "share_of_operations": flops[name] / everything,
                "share_of_seconds": medians[name] / medians["encoder_on_all"],
            }
            for name in passes
        },
    }


def median_seconds(model: MiniViT, passes: Mapping[str, Callable[[], Tensor]], rounds: int) -> dict[str, float]:
    """The median time of each forward and backward pass, which take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in passes}
    for number in range(1 + rounds):
        for name, forward in passes.items():
            model.zero_grad()
            began = time.perf_counter()
            forward().backward()
            if number:  # the first round warms up
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}
