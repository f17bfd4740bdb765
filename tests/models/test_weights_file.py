from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from pipeline.models.weights_file import NAMES, save_tensors


def test_the_library_reads_what_is_written(tmp_path: Path) -> None:
    """All dtypes, scalars, empty tensors, and non-contiguous views."""
    tensors = {str(dtype): torch.arange(6).reshape(2, 3).to(dtype) for dtype in NAMES}
    tensors |= {"scalar": torch.tensor(2.5), "none": torch.zeros(0, 3), "turned": torch.randn(3, 4).T}
    tensors |= {"part": torch.randn(4, 4, requires_grad=True)[1:3], "the same": tensors["turned"]}
    save_tensors(tmp_path / "weights.safetensors", tensors)
    found = load_file(tmp_path / "weights.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
