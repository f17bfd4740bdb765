"""SimDINO and SimDINOv2 (Wu et al. 2025): DINO without prototypes, centring and temperatures.

Legend: B batch, V views, G global views, N patches, M masked patches, D encoder width, d embedding width.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.models.bundle import Preprocess
from pipeline.models.masking import Masking, random_masking
from pipeline.models.minivit import MiniViT
from pipeline.models.spec import whole_patches
from pipeline.tasks._joint import GLOBAL
from pipeline.tasks._joint_module import FEATURES, Embedded, JointModule, projector
from pipeline.tasks._teacher import Frozen
from pipeline.tasks.base import Coupled, Outputs, Tensors
from pipeline.tasks.ranks import Ranks
from pipeline.tasks.simdino import Task
from pipeline.tasks.simdino.losses import coding_rate, misalignment

EXPANDED = "expanded"  # name of the rows that the coding rate spreads out


class SimDINO(JointModule):
    """Trains the student's embedding of each view to match the teacher's embeddings of all other global views.

    The coding rate of the global views' embeddings, which grows with the volume they fill, keeps them apart: it is a
    function of their covariance over the whole global batch.
    """

    def __init__(self, model: MiniViT, preprocess: Preprocess, task: Task) -> None:
        patches = ("patches",) if task.patch_loss else ()
        super().__init__(model, preprocess, ("alignment", *patches), ("coding_rate",))
        self.follower, self.momentum = Frozen(deepcopy(model)), task.momentum
        self.coding_rate, self.distortion, self.patch_loss = task.coding_rate, task.distortion, task.patch_loss

    def loss(self, views: Tensors, targets: Tensors, weights: Tensor, keys: Tensors) -> Outputs:
        masking, taught = self._masking(views[GLOBAL], keys[GLOBAL]), self._taught(views[GLOBAL], keys[GLOBAL])
        found = {GLOBAL: self.embed(self.model, views[GLOBAL], keys[GLOBAL], masking and masking.as_mask())}
        if torch.is_grad_enabled():  # otherwise only the rows are needed, which come from global views
            others = {group: images for group, images in views.items() if group != GLOBAL}
            found |= {group: self.embed(self.model, images, keys[group]) for group, images in others.items()}
        goals = F.normalize(taught.embeddings, dim=-1)  # [B, G, d]
        embeddings = F.normalize(torch.cat([each.embeddings for each in found.values()], dim=1), dim=-1)  # [B, V, d]
        alignment = misalignment(embeddings, goals) * weights
        losses, sums = alignment, {"alignment": alignment.double().sum(), "samples": weights.double().sum()}
        if masking and self.patch_loss:
            patches = self._patches(found[GLOBAL], taught, masking) * weights
            losses = losses + self.patch_loss.weight * patches
            sums["patches"] = patches.double().sum()
        expanded = (embeddings[:, : goals.shape[1]] + goals) / 2  # averaged with the teacher's, as in the authors' code
        rows = {EXPANDED: expanded, FEATURES: found[GLOBAL].features[:, 0].detach().float()}
        return Outputs(losses.sum()[None], self.sums(**sums), rows)

    def couple(self, rows: Tensors, shared: Tensors, weights: Tensor, ranks: Ranks, seed: int) -> Coupled:
        rate = coding_rate(rows[EXPANDED], weights, self.distortion, ranks)
        sums = self.coupled_sums(rows, weights, ranks, seed, coding_rate=rate)
        return Coupled(-self.coding_rate * rate / ranks.count, sums)

    def total(self, means: Mapping[str, float]) -> float:
        patches = self.patch_loss.weight * means["patches"] if self.patch_loss else 0.0
        return means["alignment"] + patches - self.coding_rate * means["coding_rate"]

    @torch.no_grad()
    def _taught(self, views: Tensor, keys: Tensor) -> Embedded:
        """The teacher's embeddings of the global views, without masking."""
        teacher = self._teacher()
        teacher.patch = self.model.patch
        return self.embed(teacher, views, keys)

    def _teacher(self) -> MiniViT:
        assert self.follower is not None
        return self.follower.model_like(self.model.patch_embed.proj.weight)

    def _masking(self, views: Tensor, keys: Tensor) -> Masking | None:
        """Masking of the student's global views, [B*G, M]."""
        if self.patch_loss is None:
            return None
        grid = whole_patches((views.shape[-2], views.shape[-1]), self.model.patch)
        return random_masking(keys.flatten(), grid, self.patch_loss.mask_ratio)

    def _patches(self, student: Embedded, teacher: Embedded, masking: Masking) -> Tensor:
        """Mean over a sample's masked patches of one minus the cosine with the teacher's embedding, fp32 [B]."""
        masked, prefix = masking.masked[..., None], self.model.spec.backbone.tokens.num_prefix
        mine, its = (each.tokens[:, prefix:].take_along_dim(masked, dim=1) for each in (student, teacher))
        with torch.no_grad():
            goals = projector(self._teacher()).project_patches(its)
        apart = 1 - F.cosine_similarity(projector(self.model).project_patches(mine).float(), goals.float(), dim=-1)
        return apart.unflatten(0, student.features.shape[:2]).mean(dim=(1, 2))
