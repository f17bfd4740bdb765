"""Whether the model is being traced."""

from __future__ import annotations

import torch


def is_traced() -> bool:
    """Whether a compiler or exporter is tracing, which needs plain operators."""
    return torch.compiler.is_compiling() or torch.compiler.is_exporting()
