"""What the position embeddings have learnt, and how interpolation changes it.

Each small map shows the cosine similarity of one patch's position embedding to those of all patches, as in Fig. 7 of
Dosovitskiy et al. 2021 (An Image is Worth 16x16 Words).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from pipeline.models.bundle import load_bundle
from pipeline.report.records import BranchRecord, Run
from pipeline.report.text import shape_text
from pipeline.report.theme import MUTED, themed

MAX_MAPS = 14  # per side; larger grids show evenly spaced patches


@dataclass(frozen=True)
class PositionMaps:
    """Positions of one model: `similarity` is float32 [h, w, h, w]; the first two axes select the patch."""

    slug: str
    title: str
    similarity: np.ndarray

    @property
    def grid(self) -> tuple[int, int]:
        return self.similarity.shape[0], self.similarity.shape[1]


def similarity(positions: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Cosine similarity of patch positions.

    `positions` is [P + h*w, D], where the P prefix tokens come first and are dropped; the result is [h, w, h, w].
    Positions of zero length (never trained) have similarity 0 to everything.
    """
    height, width = grid
    patches = positions[len(positions) - height * width :].astype(np.float64)
    norms = np.linalg.norm(patches, axis=1, keepdims=True)
    unit = np.divide(patches, norms, out=np.zeros_like(patches), where=norms > 0)
    return (unit @ unit.T).reshape(height, width, height, width).astype(np.float32)


def mosaic(maps: np.ndarray) -> np.ndarray:
    """All maps [h, w, h, w] as one picture, with gaps of NaN between them."""
    rows, columns = (np.unique(np.linspace(0, n - 1, min(n, MAX_MAPS)).round().astype(int)) for n in maps.shape[:2])
    height, width = maps.shape[2:]
    gap = max(1, round(height / 9))
    canvas = np.full((len(rows) * (height + gap) - gap, len(columns) * (width + gap) - gap), np.nan, dtype=np.float32)
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            top, left = i * (height + gap), j * (width + gap)
            canvas[top : top + height, left : left + width] = maps[row, column]
    return canvas


def read_maps(bundle: Path, slug: str, title: str) -> PositionMaps | None:
    """The maps of a bundle's model; None if there is none yet or its positions are not learnt."""
    if not (bundle / "model.json").is_file():
        return None
    found = load_bundle(bundle)
    positions = found.state.get("pos_embed")
    if positions is None or not bool(positions.any()):
        return None
    return PositionMaps(slug, title, similarity(positions[0].float().numpy(), found.spec.backbone.grid))


def collect_maps(run: Run, branch: BranchRecord) -> list[PositionMaps]:
    """A branch's positions from its source, after surgery and after training, as far as they exist."""
    parents = run.parents(branch)
    before = read_maps(parents[0].folder / "model", "before", f"from {parents[0].id}") if len(parents) == 1 else None
    start = read_maps(branch.folder / "init", "start", "after interpolation")
    if before is not None and start is not None and same(before, start):
        start = None  # nothing was interpolated: one picture is enough
    own = "after training" if branch.id == branch.stage else f"{branch.variant} after training"
    end = read_maps(branch.folder / "model", "end", own)
    return [maps for maps in (before, start, end) if maps is not None]


def same(one: PositionMaps, other: PositionMaps) -> bool:
    return one.grid == other.grid and np.allclose(one.similarity, other.similarity, atol=1e-4)


def draw_positions(maps: PositionMaps, lowest: float) -> Figure:
    """The grid of maps; `lowest` is the lowest similarity in all pictures shown together, for a common scale."""
    with themed():
        figure = Figure(figsize=(4.2, 4.75), layout="constrained")
        axes = figure.subplots()
        picture = axes.imshow(mosaic(maps.similarity), cmap="viridis", vmin=lowest, vmax=1.0, interpolation="none")
        axes.set_axis_off()
        axes.set_title(f"{maps.title} · {shape_text(maps.grid)}")
        bar = figure.colorbar(picture, ax=axes, orientation="horizontal", fraction=0.035, pad=0.03, aspect=40)
        bar.outline.set_visible(False)
        bar.ax.tick_params(labelsize=8, length=0)
        bar.set_label("cosine similarity", fontsize=8, color=MUTED)
    return figure


def describe_positions(branch: BranchRecord, maps: PositionMaps) -> str:
    """The picture in words, with the figure that separates structure from noise: neighbours against all pairs."""
    height, width = maps.grid
    right = np.array([maps.similarity[i, j, i, j + 1] for i in range(height) for j in range(width - 1)])
    below = np.array([maps.similarity[i, j, i + 1, j] for i in range(height - 1) for j in range(width)])
    neighbours = np.concatenate([right, below])
    near = f"{neighbours.mean():.2f}" if len(neighbours) else "none"
    return (
        f"Position similarity of {branch.id}, {maps.title}, grid {shape_text(maps.grid)}: "
        f"neighbouring patches {near} on average, all pairs {maps.similarity.mean():.2f}."
    )
