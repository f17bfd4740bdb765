"""The Transformer encoder: keys and mathematics of `nn.TransformerEncoder`, other execution.

Legend: B batch, T tokens, D width, H heads, d = D / H. Every parameter is used by the module that owns it, which ZeRO-3
relies on to gather it.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.layers import DropPath, LayerNorm, LayerScale, Linear
from pipeline.models.spec import ViTSpec


class SelfAttention(nn.Module):
    """`nn.MultiheadAttention` of a sequence with itself: same keys, one product for q, k, v, fused attention."""

    def __init__(self, dim: int, num_heads: int, dropout: float, qk_norm: bool, eps: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)
        head_dim = dim // num_heads
        self.q_norm = LayerNorm(head_dim, eps=eps) if qk_norm else nn.Identity()
        self.k_norm = LayerNorm(head_dim, eps=eps) if qk_norm else nn.Identity()

    def forward(self, x: Tensor, num_queries: int | None = None) -> Tensor:
        """[B, T, D] -> [B, num_queries or T, D]; only the first `num_queries` tokens ask, all of them answer."""
        q, k, v = self._project(x, num_queries)
        if x.dtype == torch.bfloat16 and x.device.type == "cpu":
            # torch's CPU kernel takes five times as long backward in bf16 as in fp32.
            q, k, v = q.float(), k.float(), v.float()
        dropout = self.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        attended: Tensor = self.out_proj(out.transpose(1, 2).flatten(2).to(x.dtype))
        return attended

    def weights(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, H, T, T] attention weights in fp32, computed in full: for reports, not for training."""
        q, k, _ = self._project(x, None)
        scores = q.float() @ k.float().transpose(-1, -2)
        return (scores * q.shape[-1] ** -0.5).softmax(dim=-1)

    def _project(self, x: Tensor, num_queries: int | None) -> tuple[Tensor, Tensor, Tensor]:
        """Q [B, H, num_queries or T, d], k and v [B, H, T, d]."""
        weight, bias = self.in_proj_weight.to(x.dtype), self.in_proj_bias.to(x.dtype)
        dim = x.shape[-1]
        if num_queries is None:
            q, k, v = (self._heads(part) for part in F.linear(x, weight, bias).chunk(3, dim=-1))
        else:
            q = self._heads(F.linear(x[:, :num_queries], weight[:dim], bias[:dim]))
            k, v = (self._heads(part) for part in F.linear(x, weight[dim:], bias[dim:]).chunk(2, dim=-1))
        return self.q_norm(q), self.k_norm(k), v

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class EncoderLayer(nn.Module):
    """`nn.TransformerEncoderLayer`, pre- or post-norm, with optional layer scale, drop path and qk-norm."""

    def __init__(self, spec: ViTSpec, drop_path: float) -> None:
        super().__init__()
        dim = spec.embed_dim
        self.norm_first = spec.norm == "pre"
        self.self_attn = SelfAttention(dim, spec.num_heads, spec.dropout, spec.qk_norm, spec.eps)
        self.linear1 = Linear(dim, spec.mlp_dim)
        self.linear2 = Linear(spec.mlp_dim, dim)
        self.norm1 = LayerNorm(dim, eps=spec.eps)
        self.norm2 = LayerNorm(dim, eps=spec.eps)
        self.activation = nn.GELU() if spec.activation == "gelu" else nn.ReLU()
        self.dropout, self.dropout1, self.dropout2 = (
            nn.Dropout(spec.dropout) if spec.dropout else nn.Identity() for _ in range(3)
        )
        self.ls1, self.ls2 = (
            nn.Identity() if spec.layer_scale is None else LayerScale(dim, spec.layer_scale) for _ in range(2)
        )
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor, num_outputs: int | None = None) -> Tensor:
        """[B, T, D] -> [B, num_outputs or T, D]; with `num_outputs` only the first tokens are computed."""
        residual = x if num_outputs is None else x[:, :num_outputs]
        if self.norm_first:
            x = residual + self._attend(self.norm1(x), num_outputs)
            return x + self._feed_forward(self.norm2(x))
        x = self.norm1(residual + self._attend(x, num_outputs))
        y: Tensor = self.norm2(x + self._feed_forward(x))
        return y

    def attention_weights(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, H, T, T], fp32, of this layer's input."""
        return self.self_attn.weights(self.norm1(x) if self.norm_first else x)

    def _attend(self, x: Tensor, num_queries: int | None) -> Tensor:
        branch: Tensor = self.drop_path(self.ls1(self.dropout1(self.self_attn(x, num_queries))))
        return branch

    def _feed_forward(self, x: Tensor) -> Tensor:
        hidden = self.dropout(self.activation(self.linear1(x)))
        branch: Tensor = self.drop_path(self.ls2(self.dropout2(self.linear2(hidden))))
        return branch


class Encoder(nn.Module):
    """A stack of layers under `layers.N`, without a final norm, as the tutorial builds it."""

    def __init__(self, spec: ViTSpec) -> None:
        super().__init__()
        # nn.TransformerEncoder copies one layer, so its layers start out equal; drop path grows linearly with depth.
        first = EncoderLayer(spec, 0.0)
        self.layers = nn.ModuleList(copy.deepcopy(first) for _ in range(spec.depth))
        for index, layer in enumerate(self.layers):
            rate = spec.drop_path * index / max(spec.depth - 1, 1)
            layer.drop_path = DropPath(rate) if rate else nn.Identity()

    def forward(self, x: Tensor, num_outputs: int | None = None) -> Tensor:
        """[B, T, D] -> [B, num_outputs or T, D].

        A head that reads only the first tokens needs only their outputs: the last layer then spends its queries, output
        projection and feed-forward on these alone. The result is the same; a sixth of the work at depth 6 is saved.
        """
        for layer in self.layers[:-1]:
            x = layer(x)
        outputs: Tensor = self.layers[-1](x, num_outputs)
        return outputs
