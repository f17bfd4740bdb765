"""Memory of a training rank, in closed form.

Weights, gradients and optimiser state: ZeRO (Rajbhandari et al. 2020, section 3): stage 1 shares the optimiser state,
and the moving average beside it, among the N ranks, stage 2 the gradients too, stage 3 the weights too. What the
optimiser steps under ZeRO is an fp32 copy of the weights, also where these are fp32 themselves; gradients are added up
in fp32, where the paper has 16 bits. Activations: Korthikanti et al. 2022, section 4.1, without dropout masks and
without the attention matrix, which fused attention does not keep.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.config.schema import TrainStage
from pipeline.config.training import EngineConfig
from pipeline.models.spec import ViTSpec

FP32 = 4
MOMENTS = {"adamw": 2, "lamb": 2, "sgd": 1}  # fp32 tensors kept per weight


@dataclass(frozen=True)
class RankMemory:
    """Bytes on one rank under one ZeRO stage."""

    zero_stage: int
    weights: int
    gradients: int
    optimizer: int
    ema: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.ema + self.activations


def rank_memory(parameters: int, stage: TrainStage, world_size: int, activations: int) -> list[RankMemory]:
    """Bytes per rank for ZeRO 0, 1, 2 and 3."""
    width = 2 if stage.engine.precision == "bf16" else FP32
    moments = parameters * FP32 * MOMENTS[stage.optimizer.name]
    copy = parameters * FP32
    ema = parameters * FP32 if stage.ema else 0

    def shared(amount: int, is_shared: bool) -> int:
        return -(-amount // world_size) if is_shared else amount

    return [
        RankMemory(
            zero_stage=zero,
            weights=shared(parameters * width, zero >= 3),
            gradients=shared(parameters * FP32, zero >= 2),
            optimizer=shared(moments + (0 if zero == 0 and width == FP32 else copy), zero >= 1),
            ema=shared(ema, zero >= 1),
            activations=activations,
        )
        for zero in range(4)
    ]


def activation_bytes(spec: ViTSpec, tokens: int, engine: EngineConfig) -> int:
    """Bytes kept for the backward pass of an encoder that sees so many tokens, of all images together.

    Per token and layer 8 D + 2 M values (the inputs of both norms, of qkv, of the projection and of the two linear
    layers, of the activation, and q, k and v) and one fp32 log-sum-exp per head. With activation checkpointing a layer
    keeps all but its feed-forward's D + 2 M values, or its input alone; one at a time has the rest while it is computed
    again.
    """
    width, dim = 2 if engine.precision == "bf16" else FP32, spec.embed_dim
    feed_forward, everything = width * (dim + 2 * spec.mlp_dim), width * (8 * dim + 2 * spec.mlp_dim)
    attention = FP32 * spec.num_heads
    kept, again = {
        "none": (everything + attention, 0),
        "selective": (everything - feed_forward + attention, feed_forward),
        "full": (width * dim, everything + attention),
    }[engine.activation_checkpointing]
    return tokens * (spec.depth * kept + again)
