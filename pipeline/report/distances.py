"""Attention distance per head and layer, as in Fig. 7 of Dosovitskiy et al. 2021, compared with convolutions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipeline.report.theme import MUTED, color, themed


@dataclass(frozen=True)
class Distances:
    """Mean distances, in pixels of the model's input, between a patch and the patches it attends to.

    `convolutions` is the distance for 3 x 3 convolutions on the same patches with uniform weight over their receptive
    field: after l layers (2 l + 1) x (2 l + 1) patches, cut at the border. `everything` is that of uniform attention to
    all patches.
    """

    heads: np.ndarray  # float64 [depth, heads]
    convolutions: np.ndarray  # float64 [depth]
    everything: float


def measure_distances(maps: np.ndarray, grid: tuple[int, int], patch: tuple[int, int]) -> Distances:
    """Distances of attention [B, depth, heads, P+N, P+N]; the last N tokens are a grid's (h, w) patches, row by row."""
    count = grid[0] * grid[1]
    places = np.stack(np.divmod(np.arange(count), grid[1]), axis=1)  # [N, 2]
    steps = np.abs(places[:, None] - places)  # [N, N, 2]
    distance = np.hypot(*(steps * patch).transpose(2, 0, 1))  # [N, N] px
    weights = maps[..., -count:, -count:].astype(np.float64)
    heads = mean_distance(weights, distance).mean(axis=(0, 3))
    windows = [steps.max(axis=2) <= layer for layer in range(1, maps.shape[1] + 1)]
    convolutions = np.array([mean_distance(window.astype(np.float64), distance).mean() for window in windows])
    return Distances(heads, convolutions, float(distance.mean()))


def mean_distance(weights: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """[..., N]: the mean distance under each patch's weights [..., N, N], normalised to sum 1; 0 if they sum to 0."""
    total = weights.sum(axis=-1)
    return (weights * distance).sum(axis=-1) / np.where(total > 0, total, 1)


def draw_distances(found: Distances) -> Figure:
    """One dot per head and layer."""
    layers = np.arange(1, len(found.heads) + 1)
    with themed():
        figure = Figure(figsize=(4.2, 3.2), layout="constrained")
        axes = figure.subplots()
        axes.plot(layers, found.heads, "o", ms=4, color=color(0), alpha=0.6)
        axes.plot(layers, found.heads.mean(axis=1), color=color(0), label="mean over heads")
        axes.plot(layers, found.convolutions, color=color(1), ls="--", label="3x3 convolutions")
        axes.axhline(found.everything, color=MUTED, ls=":", lw=1.2, label="uniform attention")
        axes.set_title("Mean attention distance (px)")
        axes.set_xlabel("layer", fontsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_ylim(bottom=0)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
    return figure


def describe_distances(name: str, found: Distances) -> str:
    """The chart in words."""
    first, last = found.heads[0], found.heads[-1]
    return (
        f"Mean attention distance of {name}: heads of the first layer {first.min():.0f} to {first.max():.0f} px, of "
        f"the last {last.min():.0f} to {last.max():.0f} px; 3 x 3 convolutions {found.convolutions[0]:.0f} px after "
        f"one layer and {found.convolutions[-1]:.0f} px after {len(found.convolutions)}, uniform attention "
        f"{found.everything:.0f} px."
    )
