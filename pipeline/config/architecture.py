"""The choices in which Vision Transformers differ, under their names in settings and specs."""

from __future__ import annotations

from typing import Literal

Norm = Literal["pre", "post"]
Activation = Literal["relu", "gelu", "quick_gelu"]
Pool = Literal["cls", "avg"]
Positions = Literal["learned", "sincos", "none"]
FewerPatches = Literal["resize", "slice"]
