"""`torch.export`: graphs that run without this package's code."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from pipeline.config.export import GraphConfig
from pipeline.export.files import write_description, write_tokenizer
from pipeline.export.graph import IMAGE_GRAPH, exported_graphs
from pipeline.files import write_whole
from pipeline.models.bundle import Bundle

LIBRARY = "pytorch"
USE = """```python
import torch

model = torch.export.load("{folder}/model.pt2").module()
outputs = model(images)  # normalised float32 [B, C, H, W]; model.json names all shapes
```"""


def write(bundle: Bundle, folder: Path, config: GraphConfig) -> Path:
    """Write `folder/model.pt2`, other graphs next to it, and `folder/model.json`; see `exported_graphs` for inputs."""
    traced = exported_graphs(bundle, config)
    for name, graph in traced.items():
        program = torch.export.export(graph.module, tuple(graph.inputs.values()), dynamic_shapes=graph.dynamic_shapes())
        write_whole(folder / f"{name}.pt2", partial(torch.export.save, program))
    write_description(bundle, folder, graphs={f"{name}.pt2": graph.described() for name, graph in traced.items()})
    if bundle.preprocess.tokenizer:
        write_tokenizer(bundle.preprocess.tokenizer, folder)
    return folder / f"{IMAGE_GRAPH}.pt2"


def notes(bundle: Bundle) -> list[str]:
    """What the format cannot express."""
    return ["The caller must resize and normalise images as above."]
