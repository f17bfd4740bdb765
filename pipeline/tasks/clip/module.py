"""Contrastive learning of images and captions over the global batch, evaluated by retrieval.

Legend: B samples of a micro-batch, n of a rank, L tokens of a text, E embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import ModelError
from pipeline.metrics import retrieval
from pipeline.metrics.collector import Collector
from pipeline.models.bundle import Preprocess
from pipeline.models.heads.temperature import LEAST
from pipeline.models.heads.text_tower.shape import TEMPERATURE, TEXT
from pipeline.models.minivit import MiniViT
from pipeline.models.spec import Pair
from pipeline.tasks.base import Coupled, Evaluated, Graph, Outputs, TaskModule, Tensors
from pipeline.tasks.clip.losses import LOSSES, EmbeddedPairs, contrastive
from pipeline.tasks.ranks import ALONE, Ranks


class Clip(TaskModule):
    """Two encoders into one space. Targets: `tokens`, int32 [B, L], and `caption`, int64 [B], equal for equal texts.

    The loss is the sigmoid loss if the model has a bias for it. Sums are over steps: of the loss of the global batch,
    of the scale, and of whether the scale was at a bound.
    """

    coupled = True
    any_size = True
    sum_names = ("loss", "scale", "bound", "steps")

    def __init__(self, model: MiniViT, preprocess: Preprocess) -> None:
        super().__init__(model, preprocess)
        if preprocess.tokenizer is None:
            raise ModelError("tokenizer: missing from the model, so it cannot read texts; export it again")
        self.tokenizer = preprocess.tokenizer
        options = model.spec.heads[TEMPERATURE].options
        self.most, self.loss_of_rows = options["most"], LOSSES["sigmoid" if "bias" in options else "softmax"]

    def loss(self, views: Tensors, targets: Tensors, weights: Tensor, keys: Tensors) -> Outputs:
        rows = {
            "images": self.embed_images(views["image"]),
            "texts": self.embed_texts(targets["tokens"]),
            "captions": targets["caption"],
        }
        none = torch.zeros(len(self.sum_names), dtype=torch.float64, device=weights.device)
        return Outputs(weights.new_zeros(1), none, rows, self.model.get_submodule(TEMPERATURE)())

    def couple(self, rows: Tensors, shared: Tensors, weights: Tensor, ranks: Ranks, seed: int) -> Coupled:
        pairs = EmbeddedPairs(rows["images"], rows["texts"], rows["captions"], weights)
        loss = contrastive(self.loss_of_rows, pairs, shared["scale"], shared.get("bias"), ranks)
        scale, one = shared["scale"].detach(), loss.detach().new_ones(()) / ranks.count
        bound = ((scale >= 0.999 * self.most) | (scale <= 1.001 * LEAST)).float()
        return Coupled(loss, torch.stack([loss.detach(), scale * one, bound * one, one]).double())

    def evaluate(self, views: Tensors, targets: Tensors, weights: Tensor, keys: Tensors) -> Evaluated:
        """`predicted` holds embeddings of the images and of all their captions."""
        none = torch.zeros(len(self.sum_names), dtype=torch.float64, device=weights.device)
        images, texts = self.embed_images(views["image"]), self.embed_texts(targets["all_tokens"])
        return Evaluated(none, retrieval.EmbeddedBatch(images, texts, self.model.get_submodule(TEMPERATURE)()))

    def embed_images(self, images: Tensor) -> Tensor:
        """Normalised [B, C, H, W] -> unit vectors fp32 [B, E]."""
        return F.normalize(self.model(images).float(), dim=-1)

    def embed_texts(self, tokens: Tensor) -> Tensor:
        """Int [B, L] -> unit vectors fp32 [B, E]."""
        return F.normalize(self.model.get_submodule(TEXT)(tokens, self.tokenizer.end).float(), dim=-1)

    def embed_sentences(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors fp32 [texts, E]; white space counts as in captions."""
        tokens = torch.from_numpy(self.tokenizer.encode([" ".join(text.split()) for text in texts]))
        return self.embed_texts(tokens.to(next(self.model.parameters()).device))

    def exported(self) -> nn.Module:
        return Embeds(self.model)

    def exported_beside(self) -> dict[str, Graph]:
        """The text tower: token ids int64 [B, L] -> unit vectors fp32 [B, E].

        Its output is not named `embedding`, as tracers use that name for the token lookup.
        """
        tokens = torch.from_numpy(self.tokenizer.encode(["a", "b c"])).long()
        text = Embeds(self.model.get_submodule(TEXT), self.tokenizer.end)
        return {"text": Graph(text, {"tokens": tokens}, ("text_embedding",))}

    def means(self, sums: Tensor) -> dict[str, float]:
        """Empty for an evaluation, whose loss covers all its pairs at once."""
        loss, scale, bound, steps = sums.tolist()
        return {"loss": loss / steps, "scale": scale / steps, "scale_at_bound": bound / steps} if steps else {}

    def collectors(self, *, validation: bool) -> dict[str, Collector]:
        return {"retrieval": retrieval.Retrieval(self._loss_of)}

    @torch.no_grad()
    def _loss_of(self, pairs: retrieval.Pairs, shared: Tensors) -> float:
        """Loss of all images, each with its first caption, as one batch."""
        first = np.searchsorted(pairs.owners, pairs.slots)
        images, texts, captions = map(torch.from_numpy, (pairs.images, pairs.texts[first], pairs.numbers[first]))
        scale, bias = shared["scale"].cpu(), shared["bias"].cpu() if "bias" in shared else None
        return float(
            contrastive(
                self.loss_of_rows, EmbeddedPairs(images, texts, captions, torch.ones(len(images))), scale, bias, ALONE
            )
        )

    def summarise(self, images: Tensor, sizes: Sequence[Pair], limit: int) -> list[dict[str, float]]:
        raise ModelError("a clip model has no classes of its own; evaluate it as zero_shot, or compare its embeddings")

    def predict(self, images: Tensor, sizes: Sequence[Pair], **options: Any) -> list[list[float]]:
        """The unit embeddings of images, E numbers each."""
        found: list[list[float]] = self.embed_images(images).tolist()
        return found


class Embeds(nn.Module):
    """A tower with its output normalised to unit length in fp32; `arguments` are passed after its input."""

    def __init__(self, tower: nn.Module, *arguments: int) -> None:
        super().__init__()
        self.tower, self.arguments = tower, arguments

    def forward(self, inputs: Tensor) -> Tensor:
        return F.normalize(self.tower(inputs, *self.arguments).float(), dim=-1)
