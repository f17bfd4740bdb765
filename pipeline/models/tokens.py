"""The prefix tokens: their parameters, and their order before the patches."""

from __future__ import annotations

from pipeline.models.spec import TokenSchema


def prefix_layout(schema: TokenSchema) -> list[tuple[str, int]]:
    """(state-dict key, number of tokens) of each prefix parameter, in the order of the sequence."""
    layout = [("cls_token", int(schema.cls)), ("dist_token", int(schema.dist)), ("registers", schema.registers)]
    return [(name, count) for name, count in layout if count]


def prefix_slices(schema: TokenSchema) -> dict[str, slice]:
    """Place of each prefix parameter in the sequence."""
    slices, start = {}, 0
    for name, count in prefix_layout(schema):
        slices[name] = slice(start, start + count)
        start += count
    return slices
