"""The module of `text_tower`.

Legend: B texts, L tokens of a text, D width, E width of the embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.models.encoder import Encoder
from pipeline.models.heads.head import Head
from pipeline.models.heads.text_tower.shape import text_spec
from pipeline.models.spec import HeadSpec, ViTSpec


class TextTower(Head):
    """Token embedding, learned positions, causal encoder, norm, and a matrix without bias on the end token."""

    def __init__(self, head: HeadSpec, backbone: ViTSpec) -> None:
        super().__init__()
        spec, options = text_spec(head, backbone), head.options
        self.token_embedding = nn.Embedding(options["tokens"], spec.embed_dim)
        self.positions = nn.Parameter(torch.zeros(options["length"], spec.embed_dim))
        self.transformer = Encoder(spec, causal=True)
        self.norm = nn.LayerNorm(spec.embed_dim, eps=spec.eps)
        self.projection = nn.Linear(spec.embed_dim, head.outputs, bias=False)
        self.initialise()

    @property
    def encoder_norm(self) -> None:
        """None, because its norm follows the text encoder."""
        return

    def initialise(self) -> None:
        """As in CLIP's code."""
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positions, std=0.01)
        nn.init.normal_(self.projection.weight, std=self.projection.in_features**-0.5)

    def forward(self, tokens: Tensor, end: int) -> Tensor:
        """Int [B, L] -> [B, E], not normalised: the embedding of each text at its first token `end`."""
        x = self.token_embedding(tokens)
        x = self.transformer(x + self.positions[: tokens.shape[1]].to(x.dtype))
        ends = (tokens == end).int().argmax(dim=1)
        pooled = x.gather(1, ends[:, None, None].expand(-1, 1, x.shape[2]))[:, 0]
        embedding: Tensor = self.projection(self.norm(pooled))
        return embedding
