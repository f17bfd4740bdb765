"""A classifier built from text embeddings of class names.

Legend: B images, K classes, E embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.models.heads.text_tower.shape import TEMPERATURE
from pipeline.tasks.classification.module import Classification
from pipeline.tasks.clip.module import Clip

if TYPE_CHECKING:
    from pipeline.models.bundle import Preprocess
    from pipeline.models.minivit import MiniViT
    from pipeline.tasks.zero_shot import Task


class ZeroShot(Classification):
    """A classifier whose logits are similarities to the classes' prompts, times the learned scale."""

    def __init__(self, model: MiniViT, preprocess: Preprocess, classes: Sequence[str], task: Task) -> None:
        super().__init__(model, preprocess, classes, label_smoothing=0)
        self.clip, self.task = Clip(model, preprocess), task

    def logits(self, images: Tensor) -> Tensor:
        scale = self.model.get_submodule(TEMPERATURE)()["scale"]
        return scale * self.clip.embed_images(images) @ self.class_embeddings.T

    @cached_property
    @torch.no_grad()
    def class_embeddings(self) -> Tensor:
        """Unit vectors fp32 [K, E]."""
        names = [self.task.names.get(name, name) for name in self.classes]
        prompts = [template.replace("{}", name) for name in names for template in self.task.templates]
        found = self.clip.embed_sentences(prompts).view(len(names), len(self.task.templates), -1)
        return F.normalize(found.mean(dim=1), dim=-1)
