"""One theme for all charts: drawn by matplotlib, and recoloured by the page's CSS for light and dark mode.

Charts use the colours of `TOKENS`. In inline SVG each becomes a CSS variable, which the page's template defines for
both colour schemes; PNG files keep these colours, on white.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator

INK, MUTED, GRID, PAPER = "#1c2130", "#667085", "#e3e6ed", "#fefefe"
SERIES = ["#2f6fde", "#d9622b", "#15907a", "#9a4fc0", "#b58a0b", "#cf3f6d"]
TOKENS = {INK: "ink", MUTED: "muted", GRID: "grid", PAPER: "card"} | {c: f"c{i + 1}" for i, c in enumerate(SERIES)}

# Transparent to opaque, so that empty cells show the page's background in either scheme.
SHADES = LinearSegmentedColormap.from_list("shades", [(*to_rgb(SERIES[0]), a) for a in (0.0, 0.45, 0.8, 1.0)])

RC: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": GRID,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.7,
    "lines.solid_capstyle": "round",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "text.parse_math": False,  # a class may be called "$1 bill"
    "svg.fonttype": "none",
    "svg.hashsalt": "minivit",
}


@contextmanager
def themed() -> Iterator[None]:
    """Within this context, figures take the page's theme; global settings are restored afterwards."""
    with matplotlib.rc_context(RC):
        yield


def color(index: int) -> str:
    """The colour of the index-th item compared in a chart."""
    return SERIES[index % len(SERIES)]


def step_axis(axes: Axes) -> None:
    """An x axis of whole steps: 0, 500, 1k, 1.5k."""
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel("step", fontsize=9)


def as_percent(axis: Axis) -> None:
    """Shares as percent, with as many digits as needed: 0 %, 0.5 %, 80 %."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))


def to_svg(figure: Figure, name: str) -> str:
    """An `<svg>` element for the page. `name` must be unique there, as it keeps the pictures' ids distinct."""
    buffer = io.StringIO()
    with themed():
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    svg = re.sub(r"<svg ", '<svg aria-hidden="true" focusable="false" ', svg, count=1)
    for hexadecimal, token in TOKENS.items():
        svg = svg.replace(hexadecimal, f"var(--{token})")
    return svg


def to_png(figure: Figure, path: Path) -> Path:
    """Write the figure as a PNG file on white."""
    with themed():
        figure.savefig(path, format="png", dpi=144, facecolor="white", bbox_inches="tight", pad_inches=0.15)
    return path
