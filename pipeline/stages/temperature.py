"""Reports a learned temperature that hits a bound during training."""

from __future__ import annotations

from collections.abc import Callable, Mapping

SHARE, SCALE = "train/scale_at_bound", "train/scale"

Row = Mapping[str, float]


class TemperatureWatch:
    """Reports when the temperature reaches a bound and when it leaves it."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell, self._bound = tell, False

    def look(self, row: Row) -> None:
        """Look at the next row of metrics."""
        if SHARE in row:
            self._look(row["step"], row[SHARE], row[SCALE])

    def _look(self, step: float, share: float, scale: float) -> None:
        bound = share > 0
        if bound and not self._bound:
            self._tell(
                f"the learned scale has reached a bound at step {step:.0f}, at {scale:.4g}; late in training the upper "
                "one is usual, otherwise lower optimizer.lr"
            )
        elif self._bound and not bound:
            self._tell(f"the learned scale has left its bound at step {step:.0f}, for {scale:.4g}")
        self._bound = bound
