"""Self-attention: keys and mathematics of `nn.MultiheadAttention`, executed differently.

Legend: B batch, T tokens, D width, H heads, d = D / H.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from pipeline.models.arithmetic import attention, linear
from pipeline.models.dropout import dropout
from pipeline.models.layers import Linear
from pipeline.models.spec import Pair, ViTSpec
from pipeline.models.windows import windowed_attention


class SelfAttention(nn.Module):
    """`nn.MultiheadAttention` as self-attention: same keys, one product for q, k and v, fused attention."""

    def __init__(self, spec: ViTSpec, *, causal: bool = False) -> None:
        """If `causal`, a token sees itself and earlier ones."""
        super().__init__()
        dim = spec.embed_dim
        self.num_heads, self.rate, self.causal = spec.num_heads, spec.dropout, causal
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)
        self.q_norm, self.k_norm = (
            nn.LayerNorm(dim // spec.num_heads, eps=spec.eps) if spec.qk_norm else nn.Identity() for _ in range(2)
        )

    def forward(
        self,
        x: Tensor,
        num_queries: int | None = None,
        keys: Tensor | None = None,
        mask: Tensor | None = None,
        windows: tuple[Pair, int] | None = None,
    ) -> Tensor:
        """[B, T, D] -> [B, num_queries or T, D]; only the first `num_queries` tokens are queries, all are keys.

        `keys` as in `dropout`; `mask`, bool [B or 1, 1, T, T], marks which tokens each token (row) sees, by default
        all. With `windows`, the patch grid and the largest side, patches see other patches only in their window.
        """
        q, k, v = self._project(x, num_queries)
        if windows is not None:
            within: Tensor = self.out_proj(windowed_attention(q, k, v, *windows).transpose(1, 2).flatten(2))
            return within
        drop = None if keys is None else partial(dropout, keys=keys, rate=self.rate)
        out = attention(q, k, v, drop, causal=self.causal, mask=None if mask is None else mask[:, :, : q.shape[2]])
        attended: Tensor = self.out_proj(out.transpose(1, 2).flatten(2))
        return attended

    def weights(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, T, D] -> [B, H, T, T] attention weights in fp32, computed in full: for reports, not for training.

        `mask`, bool [T, T], marks which tokens each token (row) sees, by default all.
        """
        q, k, _ = self._project(x, None)
        scores = q.float() @ k.float().transpose(-1, -2)
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        return (scores * q.shape[-1] ** -0.5).softmax(dim=-1)

    def _project(self, x: Tensor, num_queries: int | None) -> tuple[Tensor, Tensor, Tensor]:
        """Q [B, H, num_queries or T, d], k and v [B, H, T, d]."""
        weight, bias, dim = self.in_proj_weight, self.in_proj_bias, x.shape[-1]
        if num_queries is None:
            q, k, v = (self._heads(part) for part in linear(x, weight, bias).chunk(3, dim=-1))
        else:
            q = self._heads(linear(x[:, :num_queries], weight[:dim], bias[:dim]))
            k, v = (self._heads(part) for part in linear(x, weight[dim:], bias[dim:]).chunk(2, dim=-1))
        return self.q_norm(q), self.k_norm(k), v

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
