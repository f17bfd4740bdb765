"""Reports a collapse of the embeddings during training."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pipeline.metrics.effective_rank import EFFECTIVE_RANK
from pipeline.metrics.schema import VAL

COLLAPSED = 2.0  # effective rank below which a model hardly tells images apart
NAMES = (f"train/{EFFECTIVE_RANK.name}", VAL + EFFECTIVE_RANK.name)

Row = Mapping[str, float]


class CollapseWatch:
    """Reports when a collapse begins and when it ends."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell, self._collapsed = tell, False

    def look(self, row: Row) -> None:
        """Look at the next row of metrics."""
        for name in NAMES:
            if name in row:
                self._look(row["step"], row[name])

    def _look(self, step: float, rank: float) -> None:
        collapsed = rank < COLLAPSED
        if collapsed and not self._collapsed:
            self._tell(
                f"the embeddings have collapsed at step {step:.0f}: their effective rank is {rank:.2f}, so all images "
                "look alike to the model; raise the weight of the task's regulariser, or lower optimizer.lr"
            )
        elif self._collapsed and not collapsed:
            self._tell(f"the embeddings are no longer collapsed at step {step:.0f}: their effective rank is {rank:.2f}")
        self._collapsed = collapsed
