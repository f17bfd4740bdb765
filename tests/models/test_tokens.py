from __future__ import annotations

from pipeline.models import TokenSchema
from pipeline.models.tokens import prefix_layout, prefix_slices


def test_layout_is_the_order_of_the_sequence() -> None:
    schema = TokenSchema(cls=True, dist=True, mask=True, registers=4)
    assert prefix_layout(schema) == [("cls_token", 1), ("dist_token", 1), ("registers", 4)]
    assert prefix_slices(schema) == {"cls_token": slice(0, 1), "dist_token": slice(1, 2), "registers": slice(2, 6)}
    assert sum(count for _, count in prefix_layout(schema)) == schema.num_prefix


def test_absent_tokens_take_no_place() -> None:
    assert prefix_layout(TokenSchema(cls=False)) == []
    assert prefix_slices(TokenSchema(cls=False, registers=2)) == {"registers": slice(0, 2)}
