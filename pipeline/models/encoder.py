"""The Transformer encoder: keys and mathematics of `nn.TransformerEncoder`, executed differently.

Legend: B batch, T tokens, P prefix tokens, N patches, D width, H heads. Every parameter is used by the module that owns
it, which ZeRO-3 relies on to gather it.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.utils.checkpoint import checkpoint

from pipeline.models.drop_path import DropPath
from pipeline.models.dropout import dropout, layer_keys
from pipeline.models.layers import ActivatedLinear, LayerScale, Linear
from pipeline.models.self_attention import SelfAttention
from pipeline.models.spec import Pair, ViTSpec
from pipeline.models.windows import window_mask

Recompute = Literal["none", "selective", "full"]


class EncoderLayer(nn.Module):
    """`nn.TransformerEncoderLayer`, pre- or post-norm, with optional layer scale, drop path, qk-norm and windows."""

    window: int | None = None  # largest side in patches; None: attention is global

    def __init__(self, spec: ViTSpec, *, causal: bool = False) -> None:
        super().__init__()
        dim = spec.embed_dim
        self.norm_first, self.rate = spec.norm == "pre", spec.dropout
        self.self_attn = SelfAttention(spec, causal=causal)
        self.linear1 = Linear(dim, spec.mlp_dim)
        self.linear2 = ActivatedLinear(spec.mlp_dim, dim, spec.activation, spec.dropout)
        self.norm1 = nn.LayerNorm(dim, eps=spec.eps)
        self.norm2 = nn.LayerNorm(dim, eps=spec.eps)
        self.ls1, self.ls2 = (
            nn.Identity() if spec.layer_scale is None else LayerScale(dim, spec.layer_scale) for _ in range(2)
        )
        self.recompute: Recompute = "none"

    def forward(
        self,
        x: Tensor,
        num_outputs: int | None = None,
        branches: Tensor | None = None,
        keys: Tensor | None = None,
        mask: Tensor | None = None,
        grid: Pair | None = None,
    ) -> Tensor:
        """[B, T, D] -> [B, num_outputs or T, D].

        With `num_outputs`, only the first tokens are computed. `branches` [2, B, 1, 1] are factors of the two residual
        branches, `keys` [4, B] the dropout keys of `dropout.SITES`; None disables dropout. `mask` as in
        `SelfAttention`. A layer with a window needs the patch `grid`.
        """
        residual = x if num_outputs is None else x[:, :num_outputs]
        attended, fed = (None, None) if branches is None else branches
        of_attention, of_feed_forward = (None, None) if keys is None else keys.split(2)
        windows = None
        if self.window is not None:
            assert grid is not None, "a layer with a window needs the grid of the patches"
            windows = grid, self.window
        if self.norm_first:
            x = residual + _times(self._attend(self.norm1(x), num_outputs, of_attention, mask, windows), attended)
            return x + _times(self._feed_forward(x, of_feed_forward), fed)
        x = self.norm1(residual + _times(self._attend(x, num_outputs, of_attention, mask, windows), attended))
        y: Tensor = self.norm2(x + _times(self._feed_forward(x, of_feed_forward), fed))
        return y

    def attention_weights(self, x: Tensor, grid: Pair) -> Tensor:
        """Layer input [B, P+N, D] of a patch grid -> weights [B, H, P+N, P+N] in fp32."""
        mask = None
        if self.window is not None:
            mask = window_mask(grid, self.window, x.shape[1] - grid[0] * grid[1]).to(x.device)
        return self.self_attn.weights(self.norm1(x) if self.norm_first else x, mask)

    def _attend(
        self,
        x: Tensor,
        num_queries: int | None,
        keys: Tensor | None,
        mask: Tensor | None,
        windows: tuple[Pair, int] | None,
    ) -> Tensor:
        of_weights, of_output = (None, None) if keys is None else keys
        attended = self.self_attn(x, num_queries, of_weights, mask, windows)
        branch: Tensor = self.ls1(dropout(attended, of_output, self.rate))
        return branch

    def _feed_forward(self, x: Tensor, keys: Tensor | None) -> Tensor:
        if self.recompute == "selective" and torch.is_grad_enabled():
            branch: Tensor = checkpoint(self._feed_forward_branch, x, keys, use_reentrant=False)
            return branch
        return self._feed_forward_branch(x, keys)

    def _feed_forward_branch(self, x: Tensor, keys: Tensor | None) -> Tensor:
        if self.norm_first:
            x = self.norm2(x)
        of_hidden, of_output = (None, None) if keys is None else keys
        branch: Tensor = self.ls2(dropout(self.linear2(self.linear1(x), of_hidden), of_output, self.rate))
        return branch


def _times(branch: Tensor, factors: Tensor | None) -> Tensor:
    return branch if factors is None else branch * factors


class _Placed(torch.autograd.Function):
    """Copies a tensor to its slot in a preallocated block.

    Tensors kept until the backward pass, here the layers' inputs, stay apart from short-lived ones; otherwise they
    fragment the heap, and a checkpointed step took twice its memory.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, block: Tensor, index: int) -> Tensor:
        return block.data[index].copy_(x)  # `data`: to autograd, the slots are not views of one block

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad, None, None


class Encoder(nn.Module):
    """A stack of layers under `layers.N`, without a final norm, as the tutorial builds it.

    The first `num_frozen` layers run as in evaluation and pass no gradient.

    While `keys` (int64 [B], one per sample of the next batch) are set, dropout and drop path depend on them alone,
    otherwise on keys drawn from torch's generator.
    """

    keys: Tensor | None

    def __init__(self, spec: ViTSpec, *, causal: bool = False) -> None:
        """If `causal`, a token sees itself and earlier ones, as for text."""
        super().__init__()
        self.keys, self.rate, self.num_frozen = None, spec.dropout, 0
        # nn.TransformerEncoder copies one layer, so its layers start out equal.
        first = EncoderLayer(spec, causal=causal)
        self.layers = nn.ModuleList(copy.deepcopy(first) for _ in range(spec.depth))
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, EncoderLayer)
            layer.window = spec.window_of(index)
        # The rate grows linearly with depth.
        self.drop_path = DropPath([spec.drop_path * index / max(spec.depth - 1, 1) for index in range(spec.depth)])
        self.recompute: Recompute = "none"

    def forward(self, x: Tensor, num_outputs: int | None = None, *, grid: Pair | None = None) -> Tensor:
        """[B, T, D] -> [B, num_outputs or T, D]; `grid` as in `layer_outputs`.

        A head that reads only the first tokens needs only their outputs: the last layer then computes queries, output
        projection and feed-forward for these alone. The result is the same and saves a sixth of the work at depth 6.
        """
        return deque(self.layer_outputs(x, num_outputs, grid=grid), maxlen=1).pop()

    def layer_outputs(
        self,
        x: Tensor,
        num_outputs: int | None = None,
        mask: Tensor | None = None,
        *,
        grid: Pair | None = None,
    ) -> Iterator[Tensor]:
        """[B, T, D] -> the output [B, T, D] of each layer, the last one's cut to `num_outputs` tokens.

        `mask` as in `SelfAttention`; layers with windows need `grid`, patches (down, across).
        """
        keys = self._keys(x)
        branches = self.drop_path(x, keys)
        checkpointing = self.recompute == "full" and torch.is_grad_enabled()
        learning = len(self.layers) - self.num_frozen
        inputs = x.new_empty(learning, *x.shape) if checkpointing and learning else None
        for index, layer in enumerate(self.layers):
            queries = num_outputs if index == len(self.layers) - 1 else None
            if index < self.num_frozen:
                with torch.no_grad():
                    x = layer(x, queries, grid=grid)
                yield x
                continue
            if inputs is not None:
                x = _Placed.apply(x, inputs, index - self.num_frozen)
            arguments = (
                x,
                queries,
                None if branches is None else branches[index],
                None if keys is None or not self.rate else layer_keys(keys, index),
                mask,
                grid,
            )
            x = layer(*arguments) if inputs is None else checkpoint(layer, *arguments, use_reentrant=False)
            yield x

    @torch.no_grad()
    def attention_weights(self, x: Tensor, grid: Pair) -> Tensor:
        """Input [B, P+N, D] of a patch grid -> weights [B, depth, H, P+N, P+N] in fp32, without dropout and drop path.

        Row i sums to 1 over what token i sees. Holds the matrices of all layers in memory, so pass few images.
        """
        weights = []
        for layer in self.layers:
            assert isinstance(layer, EncoderLayer)
            weights.append(layer.attention_weights(x, grid))
            x = layer(x, grid=grid)
        return torch.stack(weights, dim=1)

    def _keys(self, x: Tensor) -> Tensor | None:
        """int64 [B] keys of the samples of a batch [B, T, D]; None if nothing is dropped."""
        if not self.training or not (self.rate or any(self.drop_path.rates)):
            return None
        if self.keys is None:
            return torch.randint(-(1 << 63), (1 << 63) - 1, (len(x),), device=x.device)
        assert self.keys.device == x.device, f"keys on {self.keys.device} for a batch on {x.device}"
        return self.keys

    def layer_of(self, name: str) -> int:
        """Layer number of a parameter for layer-wise decay; the first block is 1."""
        owner, _, rest = name.partition(".")
        assert owner == "layers", f"{name}: belongs to no known layer"
        return int(rest.partition(".")[0]) + 1

    def recompute_activations(self, choice: Recompute) -> None:
        """Set what the backward pass recomputes instead of keeping it from the forward pass.

        `selective`: each feed-forward from its input; saves two fifths of what a layer keeps for a ninth more work.
        `full`: each layer from its input (Chen et al. 2016); saves all of it for a third more.
        """
        self.recompute = choice
        for layer in self.layers:
            assert isinstance(layer, EncoderLayer)
            layer.recompute = choice
            layer.linear2.recomputed = choice != "none"
