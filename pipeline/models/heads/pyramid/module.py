"""The module of `pyramid`.

Legend: B batch, (h, w) grid, L levels, A candidates of all levels, C channels, K classes.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.heads._boxes import COORDINATES
from pipeline.models.heads._layers import input_dim
from pipeline.models.heads._maps import SMALL, PatchHead, as_map
from pipeline.models.heads.head import Features
from pipeline.models.heads.pyramid import depth_of, hidden_dim, level_grid, levels, map_widths
from pipeline.models.spec import HeadSpec, Pair, ViTSpec
from pipeline.models.tracing import is_traced

OBJECTS = 0.01  # initial score of every class: almost all candidates are background (Lin et al. 2017, focal loss)
REACH = 2.0  # strides from a candidate to each side of its box, initially
LONGEST = 6.0  # ln of the largest growth of the initial reach


class PyramidHead(PatchHead):
    """Candidates [B, A, 4 + K], level by level, the finest first: a box around each place, and a logit for each class.

    Places, norms and convolutions work per sample, so results do not depend on ranks and micro-batches.
    """

    def __init__(self, spec: HeadSpec, backbone: ViTSpec) -> None:
        super().__init__(spec, backbone)
        hidden, depth = hidden_dim(spec), depth_of(spec)
        self.numbers = levels(spec, backbone)
        self.maps = nn.ModuleList(_level_map(level, input_dim(spec, backbone), hidden) for level in self.numbers)
        self.class_tower, self.box_tower = (_tower(hidden, depth) for _ in range(2))
        self.classes = nn.Conv2d(hidden, spec.outputs, 1)
        self.boxes = nn.Conv2d(hidden, COORDINATES, 1)
        self.scales = nn.Parameter(torch.ones(len(self.numbers)))
        self.initialise()

    def forward(self, features: Features) -> Tensor:
        x = as_map(self.patches(features), features)
        found = []
        for level, to_level, scale in zip(self.numbers, self.maps, self.scales.float(), strict=True):
            smaller = F.max_pool2d(x, 1 << -level, ceil_mode=True) if level < 0 else x
            hidden = to_level(smaller)
            logits = self.classes(self.class_tower(hidden)).flatten(2).transpose(1, 2)  # [B, A, K]
            sides = self.boxes(self.box_tower(hidden)).flatten(2).transpose(1, 2).float()
            reach = REACH * (scale * sides).clamp(max=LONGEST).exp()  # strides to the left, top, right, bottom
            found.append(torch.cat([reach, logits.float()], dim=2))
        reach, logits = torch.cat(found, dim=1).tensor_split([COORDINATES], dim=2)
        middles, strides = self.places(features.grid, x.device).split(2, dim=1)
        first, last = middles - reach[..., :2] * strides, middles + reach[..., 2:] * strides
        return torch.cat([(first + last) / 2, last - first, logits], dim=2)

    def places(self, grid: Pair, device: torch.device) -> Tensor:
        """Place (x, y) and strides across and down of each candidate, as shares of the image: fp32 [A, 4]."""
        return (new_places if is_traced() else _kept_places)(grid, self.numbers, device)

    def initialise(self) -> None:
        """As in RetinaNet and FCOS: initial scores are low, so background candidates do not dominate the first loss."""
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.classes.weight, std=SMALL / 2)
        assert self.classes.bias is not None
        nn.init.constant_(self.classes.bias, math.log(OBJECTS / (1 - OBJECTS)))
        nn.init.normal_(self.boxes.weight, std=SMALL / 2)


def _level_map(level: int, dim: int, hidden: int) -> nn.Sequential:
    """Maps the last map, already halved for negative levels, to the level's [B, C, h, w]."""
    steps: list[nn.Module] = []
    widths = map_widths(level, dim)
    for before, after in pairwise(widths):
        steps += [nn.ConvTranspose2d(before, after, 2, stride=2), nn.GELU()]
    return nn.Sequential(*steps, nn.Conv2d(widths[-1], hidden, 1), _norm(hidden))


def _tower(hidden: int, depth: int) -> nn.Sequential:
    return nn.Sequential(
        *(step for _ in range(depth) for step in (nn.Conv2d(hidden, hidden, 3, padding=1), _norm(hidden), nn.GELU()))
    )


def _norm(hidden: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(hidden, 8), hidden)


def new_places(grid: Pair, numbers: tuple[int, ...], device: torch.device) -> Tensor:
    """Places of the candidates of these levels on a patch grid; see `PyramidHead.places`."""
    found = []
    for level in numbers:
        height, width = level_grid(grid, level)
        stride = torch.tensor([1 / grid[1], 1 / grid[0]]) / 2.0**level
        across, down = torch.arange(width) + 0.5, torch.arange(height) + 0.5
        steps = torch.stack([across.repeat(height), down.repeat_interleave(width)], dim=1)
        found.append(torch.cat([steps * stride, stride.expand(len(steps), -1)], dim=1))
    return torch.cat(found).to(device)


@lru_cache(maxsize=256)
def _kept_places(grid: Pair, numbers: tuple[int, ...], device: torch.device) -> Tensor:
    """Cached because sizes drawn per step recur. Do not write to it."""
    with torch.inference_mode(False):  # otherwise training could not use a tensor created in inference mode
        return new_places(grid, numbers, device)
