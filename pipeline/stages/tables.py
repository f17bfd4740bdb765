"""Tables of figures for a terminal, as every part of a plan prints them."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

UNKNOWN = "?"
SCALES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def figure_table(title: str, *columns: str) -> Table:
    """A table with a first column of names and further columns of right-aligned figures."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", overflow="fold", no_wrap=not number)
    return table


def spaced(table: Table) -> Table:
    """The table followed by an empty line."""
    table.add_row()
    return table


def scaled(amount: float) -> str:
    """`1.2 M`, `34 `: three digits and the prefix of the unit that follows."""
    for scale, suffix in SCALES:
        if amount >= scale:
            return f"{amount / scale:.3g} {suffix}"
    return f"{amount:.3g} "


def sides(size: Sequence[int]) -> str:
    """`28` for a square, `32x64` otherwise, height first."""
    height, width = size
    return str(height) if height == width else f"{height}x{width}"
