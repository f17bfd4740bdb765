"""Contrastive pretraining on images and their captions: CLIP (Radford et al. 2021) and SigLIP (Zhai et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field

from pipeline.config.section import Positive, Section
from pipeline.config.text import TokenizerConfig
from pipeline.errors import ModelError
from pipeline.metrics.retrieval import RETRIEVAL
from pipeline.metrics.schema import Schema
from pipeline.models.heads.text_tower.shape import IMAGE, TEMPERATURE, TEXT, tower_flops
from pipeline.models.spec import HeadSpec, ViTSpec
from pipeline.tasks.task import BaseTask
from pipeline.text.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from pipeline.models.bundle import Preprocess
    from pipeline.models.minivit import MiniViT
    from pipeline.models.model_spec import ModelSpec
    from pipeline.models.spec import Pair
    from pipeline.tasks.base import TaskModule

SCALES = {"softmax": 1 / 0.07, "sigmoid": 10.0}  # initial values, as in the papers
TOKENS, LENGTH = 8192, 32
SIGMOID_BIAS = -10.0  # so that the many negatives do not dominate the first steps


class TextTowerConfig(Section):
    """The transformer that encodes captions; unset fields are those of the model that the stage starts from, if any."""

    length: Annotated[int, Field(ge=3)] | None = Field(
        default=None,
        description="tokens per text, including the first and last special ones; longer texts are truncated; "
        "default: 32",
    )
    dim: Positive | None = Field(default=None, description="width; default: the image encoder's")
    depth: Positive | None = Field(default=None, description="layers; default: the image encoder's")
    num_heads: Positive | None = Field(default=None, description="default: one head per 64 channels, at least one")


class Task(BaseTask):
    """Adds a text tower to the image encoder; retrieval recall between images and texts selects models.

    A stage that starts from a model with a text tower keeps its tokenizer and the shape of all heads, unless set.
    """

    targets: ClassVar[tuple[str, ...]] = ("text",)
    pipeline_tag: ClassVar[str] = "zero-shot-image-classification"
    measured: ClassVar[Schema] = RETRIEVAL
    coupled: ClassVar[bool] = True

    type: Literal["clip"] = "clip"
    loss: Literal["softmax", "sigmoid"] = Field(default="softmax", description="CLIP's, or SigLIP's")
    embedding_dim: Positive | None = Field(
        default=None,
        description="width of the embeddings by which images and texts are compared; default: that of the model it "
        "starts from, else the image encoder's",
    )
    text: TextTowerConfig = TextTowerConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    max_scale: Annotated[float, Field(ge=1)] = Field(
        default=100.0, description="upper bound of the learned scale of similarities"
    )

    def tokenizing(self) -> TokenizerConfig:
        return self.tokenizer

    def starting_from(self, source: ModelSpec) -> Self:
        tower = source.heads.get(TEXT)
        if tower is None:
            return self
        tokens, text = tower.options["tokens"], {name: tower.options[name] for name in TextTowerConfig.model_fields}
        if self.tokenizer.file is None and self.tokenizer.size not in (None, tokens):
            raise ModelError(
                f"tokenizer.size: found {self.tokenizer.size}, but the model that the stage starts from has {tokens} "
                "tokens; leave size out to keep them, or name another tokenizer as tokenizer.file, for which its text "
                "tower is initialised anew"
            )
        if self.text.dim not in (None, text["dim"]):
            del text["num_heads"]  # its default follows dim
        inherited: dict[str, Any] = {
            "embedding_dim": self.embedding_dim or tower.outputs,
            "text": TextTowerConfig(**text | self.text.model_dump(exclude_none=True)),
        }
        if self.tokenizer.file is None:
            inherited["tokenizer"] = self.tokenizer.model_copy(update={"size": tokens})
        return self.model_copy(update=inherited)

    def heads(self, backbone: ViTSpec, num_classes: int) -> dict[str, HeadSpec]:
        """Raises `ModelError` if the tokenizer file is not a tokenizer."""
        width, text = self.embedding_dim or backbone.embed_dim, self.text
        dim = text.dim or backbone.embed_dim
        options = {
            "tokens": self._num_tokens(),
            "length": text.length or LENGTH,
            "dim": dim,
            "depth": text.depth or backbone.depth,
            "num_heads": text.num_heads or max(dim // 64, 1),
        }
        temperature = {"scale": min(SCALES[self.loss], self.max_scale), "most": self.max_scale}
        if self.loss == "sigmoid":
            temperature["bias"] = SIGMOID_BIAS
        return {
            IMAGE: HeadSpec("embedding", width),
            TEXT: HeadSpec("text_tower", width, options),
            TEMPERATURE: HeadSpec("temperature", 0, temperature),
        }

    def _num_tokens(self) -> int:
        if self.tokenizer.file is None:
            return self.tokenizer.size or TOKENS
        try:
            return load_tokenizer(Path(self.tokenizer.file), self.text.length or LENGTH).size
        except ModelError as error:
            raise ModelError(f"tokenizer.file: {error}") from None

    def forward_flops(self, spec: ModelSpec, image_size: Pair, patch: Pair) -> int:
        """Operations for one image and its caption."""
        return super().forward_flops(spec, image_size, patch) + tower_flops(spec.heads[TEXT], spec.backbone)

    def module(self, model: MiniViT, classes: Sequence[str], preprocess: Preprocess) -> TaskModule:
        from pipeline.tasks.clip.module import Clip

        return Clip(model, preprocess)
