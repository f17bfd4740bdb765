"""The choices that make one Vision Transformer different from another, as settings and specs of models name them."""

from __future__ import annotations

from typing import Literal

Norm = Literal["pre", "post"]
Activation = Literal["relu", "gelu", "quick_gelu"]
Pool = Literal["cls", "avg"]
Positions = Literal["learned", "sincos", "none"]
FewerPatches = Literal["resize", "slice"]
