"""Large operands cut into pieces that stay in a core's cache."""

from __future__ import annotations

# fp32 values in the widest operand of a piece of a product: 2 MB, so that all operands stay in a core's cache.
PIECE_VALUES = 1 << 19


def piece_rows(rows: int, width: int) -> int:
    """Rows per piece of a [rows, width] operand: about `PIECE_VALUES` values each, in pieces of nearly equal length."""
    pieces = max(-(-rows * width // PIECE_VALUES), 1)
    return max(-(-rows // pieces), 1)


def cut(rows: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]
