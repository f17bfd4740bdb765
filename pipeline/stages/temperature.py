"""Telling of a learned temperature that has run into its bound, while the model trains."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

SHARE, SCALE = "train/scale_at_bound", "train/scale"

Row = Mapping[str, float]


class TemperatureWatch:
    """Hands rows of metrics on and tells of the first one whose steps met the bound, and of the end of it."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell, self._bound = tell, False

    def look(self, rows: Iterable[Row]) -> Iterator[Row]:
        """The rows, in their order."""
        for row in rows:
            if SHARE in row:
                self._look(row["step"], row[SHARE], row[SCALE])
            yield row

    def _look(self, step: float, share: float, scale: float) -> None:
        bound = share > 0
        if bound and not self._bound:
            self._tell(
                f"the learned scale is held at {scale:.4g} at step {step:.0f}: it would grow on, which is usual late "
                "in training; early, lower optimizer.lr"
            )
        elif self._bound and not bound:
            self._tell(f"the learned scale has left its bound at step {step:.0f}: it is {scale:.4g}")
        self._bound = bound
