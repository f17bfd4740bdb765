"""Principal components of the patch embedding's filters, as in Fig. 7 of Dosovitskiy et al. 2021."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from pipeline.report.theme import themed

COLUMNS, ROWS = 7, 4


@dataclass(frozen=True)
class Filters:
    """`components` are float64 [n, p, q, 3] or, for grey models, [n, p, q], from 0 to 1, where 0.5 stands for zero.

    `share` is the fraction of the filters' variance that they explain together.
    """

    components: np.ndarray
    share: float


def principal_filters(kernel: np.ndarray) -> Filters:
    """Principal components of a kernel [D, C, p, q]; unless C is 1 or 3, of its first channel only."""
    if kernel.shape[1] != 3:
        kernel = kernel[:, :1]
    vectors = kernel.reshape(len(kernel), -1).astype(np.float64)
    _, values, directions = np.linalg.svd(vectors - vectors.mean(axis=0), full_matrices=False)
    chosen = directions[: COLUMNS * ROWS]
    chosen = chosen * np.sign(chosen.take(np.abs(chosen).argmax(axis=1), axis=1).diagonal())[:, None]  # fixes the sign
    scaled = 0.5 + 0.5 * chosen / np.maximum(np.abs(chosen).max(axis=1, keepdims=True), 1e-12)
    pictures = scaled.reshape(-1, *kernel.shape[1:]).transpose(0, 2, 3, 1)
    power = values**2
    share = float(power[: len(chosen)].sum() / max(power.sum(), 1e-12))
    return Filters(pictures[..., 0] if kernel.shape[1] == 1 else pictures, share)


def draw_filters(found: Filters) -> Figure:
    """The components in rows, strongest first."""
    with themed():
        figure = Figure(figsize=(4.2, 3.2), layout="constrained")
        axes = figure.subplots(ROWS, COLUMNS).ravel()
        for place, one in enumerate(axes):
            one.set_axis_off()
            if place < len(found.components):
                one.imshow(found.components[place], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        figure.suptitle("Filters of the patch embedding", fontsize=10, fontweight="bold", x=0.02, ha="left")
    return figure


def describe_filters(name: str, found: Filters) -> str:
    """The picture in words."""
    count, (height, width) = len(found.components), found.components.shape[1:3]
    return (
        f"The first {count} principal components of the patch embedding of {name}, {height} x {width} pixels each, "
        f"which explain {found.share:.0%} of the variance of its filters."
    )
