"""The module of `queries`.

Legend: B batch, (h, w) grid, N = h * w patches, D width, Q queries, M denoising ones, K classes.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal, NamedTuple, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.encoder import Encoder
from pipeline.models.heads._boxes import COORDINATES
from pipeline.models.heads._layers import input_dim
from pipeline.models.heads._maps import SMALL, PatchHead
from pipeline.models.heads.head import Features
from pipeline.models.heads.queries import FREQUENCIES, PLACE_DIM, decoder_spec, denoises, num_queries
from pipeline.models.layers import Linear
from pipeline.models.spec import HeadSpec, Pair, ViTSpec
from pipeline.models.tracing import is_traced

OBJECTS = 0.05  # initial probability that a query is an object of any class
SIDE = 0.3  # initial side of the anchors, as a share of the image
PLASTIC = 1.32471795724474602596  # its powers spread points evenly over a plane (Roberts 2018)
FARTHEST = 1e-3  # closest a coordinate comes to 0 and 1 before its logit


class Denoising(NamedTuple):
    """Queries that start from a box near an object and must recover it; groups of them do not see each other."""

    boxes: Tensor  # fp32 [B, M, 4], shifted, as shares of the image
    labels: Tensor  # int64 [B, M], some of them wrong
    groups: Tensor  # int64 [B, M], group numbers, -1 for padding


class QueriesHead(PatchHead):
    """Candidates [B, Q, 4 + K + 1]: a box, a logit for each class, and one for no object.

    A query has an anchor, a learned box that its prediction starts from. Anchors and patches share one position
    encoding, so that a query can look at the patches around its anchor.
    """

    def __init__(self, spec: HeadSpec, backbone: ViTSpec) -> None:
        super().__init__(spec, backbone)
        dim = backbone.embed_dim
        self.embed = Linear(input_dim(spec, backbone), dim)
        self.queries = nn.Parameter(torch.empty(num_queries(spec), dim))
        self.anchors = nn.Parameter(torch.empty(num_queries(spec), COORDINATES))  # logits
        self.labels = nn.Parameter(torch.empty(spec.outputs, dim)) if denoises(spec) else None
        self.place = nn.Sequential(nn.Linear(PLACE_DIM, dim), nn.GELU(), nn.Linear(dim, dim))
        self.transformer = Encoder(decoder_spec(spec, backbone))
        self.out_norm = nn.LayerNorm(dim, eps=backbone.eps)
        self.classes = nn.Linear(dim, spec.outputs)
        self.background = nn.Linear(dim, 1)
        self.hidden = nn.Linear(dim, dim)
        self.boxes = nn.Linear(dim, COORDINATES)
        self.initialise()

    @overload
    def forward(self, features: Features) -> Tensor: ...
    @overload
    def forward(self, features: Features, denoising: Denoising | None, every: Literal[True]) -> list[Tensor]: ...

    def forward(
        self, features: Features, denoising: Denoising | None = None, every: bool = False
    ) -> Tensor | list[Tensor]:
        """Candidates of the last layer, or for training those of `every` layer, followed by the denoising ones."""
        tokens, start = self._tokens(features, denoising)
        if not every:
            return self._candidates(self.transformer(tokens, start.shape[1]), start)
        mask = None if denoising is None else self._mask(denoising, tokens.shape[1])
        outputs = self.transformer.layer_outputs(tokens, start.shape[1], mask)
        return [self._candidates(x[:, : start.shape[1]], start) for x in outputs]

    def _tokens(self, features: Features, denoising: Denoising | None) -> tuple[Tensor, Tensor]:
        """Tokens [B, Q + M + N, D], and the logits from which boxes start, fp32 [1 or B, Q + M, 4]."""
        patches = self.embed(self.patches(features))
        dtype, batch = patches.dtype, patches.shape[0]  # `len` would fix the batch of an exported graph
        cells = (_new_cells if is_traced() else _kept_cells)(features.grid, patches.device)
        places = self.place(cells.to(dtype))
        start = self.anchors.float()[None]
        asking = self.queries.to(dtype) + self.place(_encode_boxes(start.sigmoid()).to(dtype))
        asking = asking.expand(batch, -1, -1)
        if denoising is not None:
            assert self.labels is not None, "a head with the option denoising"
            known = self.labels.to(dtype)[denoising.labels] + self.place(_encode_boxes(denoising.boxes).to(dtype))
            asking = torch.cat([asking, known], dim=1)
            logits = denoising.boxes.clamp(FARTHEST, 1 - FARTHEST).logit()
            start = torch.cat([start.expand(batch, -1, -1), logits], dim=1)
        return torch.cat([asking, patches + places], dim=1), start

    def _candidates(self, x: Tensor, start: Tensor) -> Tensor:
        """[B, Q, D] -> [B, Q, 4 + K + 1], from logits of boxes fp32 [1 or B, Q, 4]."""
        x = self.out_norm(x)
        boxes = (start + self.boxes(F.gelu(self.hidden(x))).float()).sigmoid()
        return torch.cat([boxes, self.classes(x).float(), self.background(x).float()], dim=2)

    def _mask(self, denoising: Denoising, tokens: int) -> Tensor:
        """Bool [B, 1, T, T]: which token (row) sees which. Only queries of its group see a denoising query."""
        groups, queries = denoising.groups, len(self.queries)
        batch, known = groups.shape
        rows = F.pad(groups, (queries, tokens - queries - known), value=-1)  # [B, T]
        seen = torch.ones(batch, tokens, tokens, dtype=torch.bool, device=groups.device)
        seen[:, :, queries : queries + known] = rows[:, :, None] == groups[:, None]
        seen[:, :, queries : queries + known] &= (groups >= 0)[:, None]
        return seen[:, None]

    def initialise(self) -> None:
        """Boxes start as the anchors, spread over the image, and nearly all queries predict no object."""
        nn.init.trunc_normal_(self.queries, std=SMALL)
        if self.labels is not None:
            nn.init.trunc_normal_(self.labels, std=SMALL)
        count = len(self.anchors)
        steps = torch.arange(1, count + 1, dtype=torch.float64)[:, None] / PLASTIC ** torch.tensor([1.0, 2.0])
        places = torch.cat([steps % 1, torch.full((count, 2), SIDE)], dim=1).clamp(FARTHEST, 1 - FARTHEST)
        with torch.no_grad():
            self.anchors.copy_(places.logit())
        nn.init.trunc_normal_(self.classes.weight, std=SMALL)
        nn.init.trunc_normal_(self.background.weight, std=SMALL)
        nn.init.constant_(self.background.bias, math.log(self.classes.out_features * (1 - OBJECTS) / OBJECTS))
        nn.init.zeros_(self.boxes.weight)


def _encode_boxes(boxes: Tensor) -> Tensor:
    """Boxes fp32 [..., 4] -> [..., PLACE_DIM]: each coordinate encoded by sines and cosines."""
    angles = boxes[..., None] * (math.pi * 2 ** torch.arange(FREQUENCIES, device=boxes.device))
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)


def _new_cells(grid: Pair, device: torch.device) -> Tensor:
    """Encoding of the patches' boxes by `_encode_boxes`, fp32 [1, N, PLACE_DIM]."""
    across, down = ((torch.arange(count) + 0.5) / count for count in grid[::-1])
    middles = torch.stack([across.repeat(grid[0]), down.repeat_interleave(grid[1])], dim=1)
    sides = torch.tensor([1 / grid[1], 1 / grid[0]]).expand(len(middles), -1)
    return _encode_boxes(torch.cat([middles, sides], dim=1))[None].to(device)


@lru_cache(maxsize=256)
def _kept_cells(grid: Pair, device: torch.device) -> Tensor:
    """Cached because sizes drawn per step recur. Do not write to it."""
    with torch.inference_mode(False):  # otherwise training could not use a tensor created in inference mode
        return _new_cells(grid, device)
