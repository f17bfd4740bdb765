"""The library that the CPU's own operators belong to; compilers and exporters leave them as they are."""

from __future__ import annotations

import torch

OPERATORS = torch.library.Library("minivit", "DEF")
