"""ONNX: the graph at the model's own size, any batch."""

from __future__ import annotations

from pathlib import Path

import torch

from pipeline.export.files import output_names, write_description
from pipeline.export.to_torch_export import example_images, fixed_size_model
from pipeline.files import write_whole
from pipeline.models.bundle import Bundle


def write(bundle: Bundle, folder: Path) -> Path:
    """`folder/model.onnx` (input `images`: normalised fp32 [B, C, H, W]) and `folder/model.json`.

    Outputs are those of `MiniViT.forward`, a classifier's is `logits`; see `output_names`. Positions are baked at the
    model's size: exporters have written another cubic than the one that trained.
    """
    program = torch.onnx.export(
        fixed_size_model(bundle),
        (example_images(bundle),),
        input_names=["images"],
        output_names=output_names(bundle.spec),
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    write_description(bundle, folder)
    return write_whole(folder / "model.onnx", lambda path: program.save(path, external_data=False))
