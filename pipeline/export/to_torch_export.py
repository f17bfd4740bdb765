"""`torch.export`: a graph that runs without this package's code."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from pipeline.export.files import write_description
from pipeline.files import write_whole
from pipeline.models.bundle import Bundle
from pipeline.models.minivit import MiniViT
from pipeline.models.surgery import adapt


def write(bundle: Bundle, folder: Path) -> Path:
    """`folder/model.pt2` (any batch of normalised fp32 [B, C, H, W] at the model's size) and `folder/model.json`."""
    batch = torch.export.Dim("batch")
    program = torch.export.export(fixed_size_model(bundle), (example_images(bundle),), dynamic_shapes=({0: batch},))
    write_description(bundle, folder)
    return write_whole(folder / "model.pt2", lambda path: torch.export.save(program, path))


def fixed_size_model(bundle: Bundle) -> MiniViT:
    """The fp32 eval model whose positions are those of `preprocess.image_size`, so that no graph interpolates."""
    backbone = bundle.spec.backbone
    grid = backbone.grid_for(bundle.preprocess.image_size)
    baked = bundle.spec.with_backbone(grid=grid)
    state = {name: tensor.float() for name, tensor in bundle.state.items()}
    if grid != backbone.grid:
        state, _ = adapt(state, bundle.spec, baked)
    model = MiniViT.from_spec(baked, init="torch")
    model.load_state_dict(state)
    return model.eval()


def example_images(bundle: Bundle) -> Tensor:
    """Two images of zeros: exporters take a batch of one for a constant."""
    return torch.zeros(2, bundle.spec.backbone.channels, *bundle.preprocess.image_size)
