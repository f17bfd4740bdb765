"""What a surgery did to each tensor, and how far it moved the model's outputs."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any, Literal

Action = Literal["copied", "resized", "initialised", "dropped"]
ACTIONS: tuple[Action, ...] = ("copied", "resized", "initialised", "dropped")


@dataclass(frozen=True)
class Change:
    """One tensor: shapes before and after (None if it did not or does not exist), and a note if it is not obvious."""

    name: str
    action: Action
    before: tuple[int, ...] | None
    after: tuple[int, ...] | None
    note: str = ""


@dataclass(frozen=True)
class Probe:
    """How far the outputs moved for smooth random images, resized to each model's own size.

    `feature_cosine` and `feature_change` (relative L2) compare the mean patch feature after the first `layers` layers,
    per image and averaged; `logit_change` (largest absolute) is None unless these are all layers and heads and classes
    are the same.
    """

    images: int
    layers: int
    feature_cosine: float
    feature_change: float
    logit_change: float | None


@dataclass(frozen=True)
class SurgeryReport:
    """What happened to every tensor of the old and new state dict; `heads` has a sentence for each head not kept."""

    changes: tuple[Change, ...]
    probe: Probe
    heads: tuple[str, ...] = ()

    def count(self, action: Action) -> int:
        return Counter(change.action for change in self.changes)[action]

    @property
    def changed(self) -> list[Change]:
        """The tensors that were not simply copied."""
        return [change for change in self.changes if change.action != "copied" or change.note]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "counts": {action: self.count(action) for action in ACTIONS},
            "changes": [asdict(change) for change in self.changes],
            "probe": asdict(self.probe),
            "heads": list(self.heads),
        }

    def summary(self) -> str:
        """One line for a log."""
        counts = ", ".join(f"{self.count(action)} {action}" for action in ACTIONS if self.count(action))
        probe = self.probe
        heads = "".join(f"{sentence}; " for sentence in self.heads)
        return (
            f"{counts}; {heads}features of {probe.images} probe image(s) after {probe.layers} layers: "
            f"cosine {probe.feature_cosine:.4f}"
        )

    def __str__(self) -> str:
        """The summary, followed by a table of what was not simply copied."""
        if not self.changed:
            return self.summary()
        rows: list[tuple[str, ...]] = [("tensor", "action", "before", "after", "how")]
        rows += [(c.name, c.action, _shape(c.before), _shape(c.after), c.note) for c in self.changed]
        widths = [max(len(row[column]) for row in rows) for column in range(5)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([self.summary(), *lines])


def _shape(shape: tuple[int, ...] | None) -> str:
    return "-" if shape is None else "x".join(map(str, shape))
