"""Formats numbers for the page."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.metrics.schema import Measure

NOTHING = "\N{EN DASH}"
TIMES = "\N{MULTIPLICATION SIGN}"


def duration_text(seconds: float) -> str:
    """42 s, 3 min 20 s, 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def count_text(count: int) -> str:
    """215 k, 5.7 M, 1.01 B."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count)


def value_text(measure: Measure, value: float | None) -> str:
    """81.3 % for a share, or a dash for an unknown value."""
    return NOTHING if value is None else measure.text(value)


def figure_text(figure: str) -> str:
    """A figure of a CSV file: 12,345 or 0.812; text unchanged, and a dash if empty."""
    if figure.isascii() and figure.isdigit():
        return f"{int(figure):,}"
    try:
        return f"{float(figure):.3f}"
    except ValueError:
        return figure or NOTHING


def size_text(size: int | tuple[int, int]) -> str:
    """28 for a square, 28×56 (height by width) for a rectangle."""
    height, width = (size, size) if isinstance(size, int) else size
    return str(height) if height == width else f"{height}{TIMES}{width}"


def shape_text(shape: Sequence[int] | None) -> str:
    """A tensor's shape, or a dash for a missing tensor."""
    return NOTHING if shape is None else TIMES.join(map(str, shape))
