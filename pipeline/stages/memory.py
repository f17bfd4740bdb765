"""Memory of a training rank, in closed form.

Weights, gradients and optimiser state: ZeRO (Rajbhandari et al. 2020, section 3). Stage 1 shards the optimiser state
and the moving average across the N ranks, stage 2 also the gradients, stage 3 also the weights. Under ZeRO the
optimiser updates an fp32 copy of the weights, even if these are fp32 themselves; gradients accumulate in fp32, not in
16 bits as in the paper. Activations: Korthikanti et al. 2022, section 4.1, without dropout masks and without the
attention matrix, which fused attention does not keep.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from pipeline.config.train_stage import TrainStage
from pipeline.config.training import EngineConfig
from pipeline.models.costs import layer_parameters, layer_values
from pipeline.models.heads import head_kind
from pipeline.models.model_costs import count_parameters
from pipeline.models.model_spec import ModelSpec
from pipeline.models.spec import Pair, ViTSpec
from pipeline.tasks.task import task_of

FP32 = 4
# fp32 tensors kept per weight; Muon keeps two of the few that are not in a layer's matrices
MOMENTS = {"adamw": 2, "lamb": 2, "muon": 1, "sgd": 1}


@dataclass(frozen=True)
class RankMemory:
    """Bytes on one rank under one ZeRO stage."""

    zero_stage: int
    weights: int
    gradients: int
    optimizer: int
    ema: int
    activations: int
    teacher: int = 0  # includes the fp32 average behind a moving-average teacher

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.ema + self.activations + self.teacher


def rank_memory(
    parameters: int, stage: TrainStage, world_size: int, activations: int, teacher: int = 0, frozen: int = 0
) -> list[RankMemory]:
    """Bytes per rank for ZeRO 0, 1, 2 and 3.

    `teacher` is the bytes of the teacher model, `frozen` the number of parameters that are not trained.
    """
    width, trained = value_bytes(stage.engine), parameters - frozen
    moments = trained * FP32 * MOMENTS[stage.optimizer.name]
    copy = trained * FP32
    ema = trained * FP32 if stage.ema else 0
    follows = task_of(stage.task).follows

    def shared(amount: int, is_shared: bool) -> int:
        return -(-amount // world_size) if is_shared else amount

    return [
        RankMemory(
            zero_stage=zero,
            weights=shared(parameters * width, zero >= 3),
            gradients=shared(trained * FP32, zero >= 2),
            optimizer=shared(moments + (0 if zero == 0 and width == FP32 else copy), zero >= 1),
            ema=shared(ema, zero >= 1),
            activations=activations,
            teacher=teacher + (shared(trained * FP32, zero >= 1) if follows else 0),
        )
        for zero in range(4)
    ]


def activation_bytes(spec: ViTSpec, tokens: int, engine: EngineConfig, frozen_layers: int = 0) -> int:
    """Bytes that an encoder keeps for the backward pass; `tokens` counts those of all images together.

    Frozen layers keep nothing.

    Per token and layer: `costs.layer_values` and one fp32 log-sum-exp per head. With activation checkpointing a layer
    keeps all but its feed-forward's D + 2 M values, or only its input; the rest exists for one layer at a time, while
    it is recomputed.
    """
    width, dim = value_bytes(engine), spec.embed_dim
    feed_forward, everything = width * (dim + 2 * spec.mlp_dim), width * layer_values(spec)
    attention = FP32 * spec.num_heads
    kept, again = {
        "none": (everything + attention, 0),
        "selective": (everything - feed_forward + attention, feed_forward),
        "full": (width * dim, everything + attention),
    }[engine.activation_checkpointing]
    learning = spec.depth - frozen_layers
    return tokens * (learning * kept + (again if learning else 0))


def head_bytes(spec: ModelSpec, images: int, grid: Pair, engine: EngineConfig) -> int:
    """Bytes that the heads keep for the backward pass of `images` images of `grid` patches."""
    heads = ((head_kind(head.kind), head) for head in spec.heads.values())
    return images * value_bytes(engine) * sum(kind.kept_values(head, spec.backbone, grid) for kind, head in heads)


def teacher_bytes(spec: ModelSpec, images: int, engine: EngineConfig, ranks: int = 1) -> int:
    """Bytes of a frozen model's weights, sharded across `ranks`, and of its forward pass on `images` images.

    Nothing is kept for a backward pass: the peak is a layer's input and output plus both sides of its feed-forward.
    The images are fp32, resized to the model's size. On several ranks two layers are gathered at a time: the one
    computing and the next.
    """
    backbone, width = spec.backbone, value_bytes(engine)
    pixels = images * FP32 * backbone.channels * prod(backbone.image_size)
    tokens = images * (backbone.num_patches + backbone.tokens.num_prefix)
    layer = tokens * width * (2 * backbone.embed_dim + 2 * backbone.mlp_dim)
    gathered = 2 * layer_parameters(backbone) if ranks > 1 else 0
    return (-(-count_parameters(spec) // ranks) + gathered) * width + pixels + layer


def value_bytes(engine: EngineConfig) -> int:
    """Bytes per activation value."""
    return 2 if engine.precision == "bf16" else FP32
