"""What is traced into graphs: a task's post-processed outputs for images, and its further computations.

Legend: B batch, C channels, (H, W) image.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pipeline.config.export import GraphConfig
from pipeline.models.bundle import Bundle
from pipeline.models.minivit import MiniViT
from pipeline.models.spec import ViTSpec
from pipeline.tasks.base import TaskModule
from pipeline.tasks.task import own_task

IMAGES, IMAGE_GRAPH = "images", "model"
LEAST_GRID = 2  # minimum patches per side in a graph for any size: tracers turn 1 into a constant
EXAMPLES = 2  # a batch of one would become a constant too


class Axis(NamedTuple):
    """An axis of any length, or of any multiple of `times`."""

    name: str
    times: int = 1
    least: int = 1

    def __str__(self) -> str:
        return self.name if self.times == 1 else f"{self.times}*{self.name}"

    def dim(self) -> Any:
        """The dimension as exporters expect it."""
        dim = torch.export.Dim(self.name, min=self.least)
        return dim if self.times == 1 else self.times * dim


class Traced(NamedTuple):
    """What becomes a file's graph: example inputs, the dynamic axes of each, the outputs' names.

    `ranked` as in `TaskModule`.
    """

    module: nn.Module
    inputs: dict[str, Tensor]
    axes: dict[str, dict[int, Axis]]
    outputs: tuple[str, ...]
    ranked: bool = False

    def dynamic_shapes(self) -> tuple[dict[int, Any], ...]:
        """The dynamic axes of each input, as exporters expect them."""
        return tuple({number: axis.dim() for number, axis in self.axes[name].items()} for name in self.inputs)

    def described(self) -> dict[str, Any]:
        """Plain data for `model.json`: input shapes, with names of dynamic axes, and the outputs' names."""
        shapes = {
            name: [str(self.axes[name].get(number, side)) for number, side in enumerate(x.shape)]
            for name, x in self.inputs.items()
        }
        return {"inputs": shapes, "outputs": list(self.outputs)}

    def trials(self) -> list[dict[str, Tensor]]:
        """Inputs that differ from the examples: another batch size and, if dynamic, another image size."""
        generator = torch.Generator().manual_seed(0)
        found = []
        for sizes in (False, True) if any(len(axes) > 1 for axes in self.axes.values()) else (False,):
            inputs = {}
            for name, example in self.inputs.items():
                shape = [EXAMPLES + 1, *example.shape[1:]]
                for number, axis in self.axes[name].items() if sizes else ():
                    shape[number] = (LEAST_GRID + 1) * axis.times
                drawn = torch.randn(shape, generator=generator)
                inputs[name] = drawn if example.is_floating_point() else example[[0, *range(EXAMPLES)]]
            found.append(inputs)
        return found

    @torch.no_grad()
    def expected(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """The outputs of the traced module, in the order of their names."""
        found = self.module(*inputs.values())
        if isinstance(found, Tensor):
            return [found]
        return list(found.values() if isinstance(found, dict) else found)


def exported_graphs(bundle: Bundle, config: GraphConfig) -> dict[str, Traced]:
    """The graphs of a model by file name; `model` is the image graph.

    It takes normalised fp32 [B, C, H, W] of any batch size. If model, task and settings allow it, H and W are any
    multiples of the patch, otherwise the task's image size. No graph uses a resize operator: exporters have written a
    different cubic from the one used in training.
    """
    task = own_task(bundle)
    names = bundle.classes or [str(number) for number in range(bundle.spec.num_classes)]
    model = MiniViT.from_state(bundle.spec, bundle.state)
    module = task.module(model.float(), names, bundle.preprocess).eval()
    size = next(iter(task.view_groups(evaluation=True).values())).size or bundle.preprocess.image_size
    images = torch.zeros(EXAMPLES, bundle.spec.backbone.channels, *size)
    batch = Axis("batch")
    axes = {0: batch} | (_size_axes(bundle.spec.backbone) if config.any_size and takes_any_size(module) else {})
    exported, outputs = module.exported().eval(), module.output_names
    found = {IMAGE_GRAPH: Traced(exported, {IMAGES: images}, {IMAGES: axes}, outputs, module.ranked)}
    for name, graph in module.exported_beside().items():
        free = {key: {0: batch} for key in graph.inputs}
        found[name] = Traced(graph.module.eval(), graph.inputs, free, graph.outputs)
    return found


def takes_any_size(module: TaskModule) -> bool:
    """Whether one graph works for all sizes: windows, and positions that a tutorial's model slices, depend on it."""
    backbone = module.model.spec.backbone
    fits = backbone.positions == "none" or backbone.fewer_patches == "resize"
    return module.any_size and backbone.windows is None and fits


def _size_axes(backbone: ViTSpec) -> dict[int, Axis]:
    down, across = backbone.patch
    return {2: Axis("rows", down, LEAST_GRID), 3: Axis("columns", across, LEAST_GRID)}
