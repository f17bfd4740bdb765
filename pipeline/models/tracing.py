"""Tracing of models by compilers and exporters."""

from __future__ import annotations

import threading

import torch

# Exporters change how all threads of a process call modules: one of them at a time may export or call any.
CALLING_MODULES = threading.Lock()


def is_traced() -> bool:
    """Whether a compiler or exporter is tracing, which needs plain operators."""
    return torch.compiler.is_compiling() or torch.compiler.is_exporting()
