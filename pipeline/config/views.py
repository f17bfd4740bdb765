"""The views of each sample that a task asks for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ViewGroup:
    """Views of one size, each augmented by draws of its own."""

    count: int = 1
    size: tuple[int, int] | None = None  # height, width; None: that of the step


IMAGE = {"image": ViewGroup()}  # what most tasks see: each sample once
