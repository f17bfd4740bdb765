"""A model with what it is trained to do. Everything that a step or an evaluation computes is one call of it.

Legend: B samples of a micro-batch, T terms of the loss, S sums of measures.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor, nn

from pipeline.config.probe import Pooling
from pipeline.errors import ModelError
from pipeline.metrics.collector import Collector
from pipeline.models.bundle import Preprocess
from pipeline.models.minivit import MiniViT
from pipeline.models.pooled import pooled
from pipeline.models.spec import Pair
from pipeline.stream.batch import Batch
from pipeline.tasks._teacher import Frozen
from pipeline.tasks.ranks import Ranks

if TYPE_CHECKING:  # what the drawing of predictions needs, is slow to import
    import numpy as np

    from pipeline.images.decode import Pixels

Tensors = Mapping[str, Tensor]


class Outputs(NamedTuple):
    """What training computes of a micro-batch."""

    losses: Tensor  # fp32 [T]: sums over the micro-batch, by weight and coefficient; not yet divided by the normalisers
    sums: Tensor  # float64 [S], detached
    rows: Tensors = MappingProxyType({})  # name -> fp32 or int64 [B, ...], what a coupled loss reads of each
    shared: Tensors = MappingProxyType({})  # name, unlike those of rows -> fp32, what it reads that is of no sample


class Coupled(NamedTuple):
    """What a loss that couples samples makes of a rank's share of the global batch."""

    loss: Tensor  # fp32 []: the rank's part; those of all ranks add up to the loss of the global batch
    sums: Tensor  # float64 [S], detached, on top of those of the micro-batches


class Evaluated(NamedTuple):
    """What an evaluation computes of a micro-batch."""

    sums: Tensor  # float64 [S], of the same names as in training
    predicted: Any  # what the task's collectors take in


class Graph(NamedTuple):
    """A further graph of an export: what computes it, two examples [2, ...] of each input, and its outputs' names."""

    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]


class Compared(NamedTuple):
    """What the task says of a sample, and what it should have said, both as `draw` takes them."""

    size: Pair | None  # the image's own height and width; None where predictions have no places in the image
    truth: Any
    predicted: Any
    caption: str


class TaskModule(nn.Module, ABC):
    """A task on a model, which alone has parameters.

    Measures travel as sums, so that they add up over micro-batches, ranks and restarts; `sum_names` says what they are.
    """

    sum_names: tuple[str, ...]
    predict_options: frozenset[str] = frozenset()  # what `predict` takes besides the images
    coupled: bool = False  # whether `couple` adds to the loss what depends on several samples at once
    follower: Frozen[MiniViT] | None = None  # a teacher whose weights are the moving average of the model's
    momentum: float = 0.0  # weight of the past in that average, at first
    any_size: bool = False  # whether what is `exported` takes images of any size that is a multiple of the patch
    ranked: bool = False  # whether it gives rows [B, M, ...] by their scores: equal ones may come in either order

    def __init__(self, model: MiniViT, preprocess: Preprocess) -> None:
        """`preprocess.eval` is how evaluation and prediction bring images to the model's size."""
        super().__init__()
        self.model, self.preprocess = model, preprocess
        self._pooling: Pooling | None = None

    def forward(self, views: Tensors, targets: Tensors, weights: Tensor, keys: Tensors) -> Outputs | Evaluated | Tensor:
        """`loss` in training mode, else `evaluate`, or features: the one call that hooks on the module see.

        Args:
            views: group -> normalised [B, C, H, W], or [B, V, C, H, W] where a group has several views.
            targets: field -> [B, ...]; of a ragged field F the values, with "F.offsets" int64 [B + 1].
            weights: fp32 [B], 0 for samples that must not count anywhere: stand-ins and padding.
            keys: group -> int64 [B], or [B, V]; what is drawn for a sample depends on its keys alone.
        """
        if self._pooling:
            return pooled(self.model, views["image"], self._pooling)
        act = self.loss if self.training else self.evaluate
        return act(views, targets, weights, keys)

    @contextmanager
    def embedding(self, pooling: Pooling) -> Iterator[Callable[[Tensor], Tensor]]:
        """Within this context the module gives features, as `pooled` makes them, of normalised [B, C, H, W].

        Yields what calls it so.
        """
        training, self._pooling = self.training, pooling
        self.eval()
        try:
            yield lambda images: self({"image": images}, {}, images.new_ones(len(images)), {})
        finally:
            self._pooling = None
            self.train(training)

    @abstractmethod
    def loss(self, views: Tensors, targets: Tensors, weights: Tensor, keys: Tensors) -> Outputs:
        """Training losses of a micro-batch."""

    def couple(self, rows: Tensors, shared: Tensors, weights: Tensor, ranks: Ranks, seed: int) -> Coupled:
        """The part of the loss that couples samples, from what `loss` returned of them; reads no parameters.

        Args:
            rows: name -> [n, ...] of this rank's share, whatever micro-batches it was cut into.
            shared: as it was returned for the first micro-batch.
            weights: fp32 [n]; samples of weight 0 must not count anywhere.
            ranks: the other ranks' rows, or sums over them. What every rank computes alike is divided by `ranks.count`.
            seed: of what is drawn for the step; the same on every rank.
        """
        raise NotImplementedError(f"{type(self).__name__} couples no samples")

    @abstractmethod
    def evaluate(self, views: Tensors, targets: Tensors, weights: Tensor, keys: Tensors) -> Evaluated:
        """Measures of a micro-batch, whose targets are neither mixed nor smoothed."""

    @abstractmethod
    def means(self, sums: Tensor) -> dict[str, float]:
        """Measures from sums [S]; one that means nothing of these samples is left out."""

    def normalisers(self, batch: Batch) -> Tensor:
        """float64 [T]: what each term of the loss is divided by, once added up over ranks, of a rank's whole share.

        By default the samples that count, for a single term.
        """
        return batch.weights.double().sum()[None]

    def collectors(self, *, validation: bool) -> dict[str, Collector]:
        """What an evaluation gathers besides sums, by name; in `validation`, while training waits, what is cheap."""
        return {}

    def mistakes(self, predicted: Any, batch: Batch) -> Tensor | None:
        """How wrong what `evaluate` predicted of each sample is, fp32 [B]: 0 where it is right.

        The worst are shown, as `compared` gives them; by default nobody can say.
        """
        return None

    def compared(self, predicted: Any, batch: Batch, row: int) -> Compared:
        """One sample of a micro-batch, for which `evaluate` predicted something; asked where there are `mistakes`."""
        raise NotImplementedError(f"{type(self).__name__} does not say how wrong it is")

    def predict(self, images: Tensor, sizes: Sequence[Pair], **options: Any) -> list[Any]:
        """What the model says of each image in plain data.

        Args:
            images: normalised [B, C, H, W], at the model's size.
            sizes: (height, width) of the images before they were brought to that size.
            options: those of `predict_options`.

        Raises:
            ModelError: the task predicts nothing of images.
        """
        raise ModelError(
            f"predict: a model of the task {self.model.spec.task} has nothing to say of images; fine-tune it for "
            "another task first"
        )

    def exported(self) -> nn.Module:
        """What exported graphs compute of normalised images [B, C, H, W], post-processing that needs no sizes included.

        It gives a tensor [B, ...], or several in the order of `output_names`; no shape depends on what the images show.
        By default that is what the model gives.
        """
        return self.model

    @property
    def output_names(self) -> tuple[str, ...]:
        """What the outputs of `exported` are called; by default as `ModelSpec.output_names` has it."""
        return self.model.spec.output_names

    def exported_beside(self) -> dict[str, Graph]:
        """Graphs of anything but images, by the names of their files; by default there are none."""
        return {}

    def draw(self, picture: Pixels, predicted: Any) -> Pixels:
        """A picture, uint8 [H, W, 3] of the image's own size, with what `predict` gave for it; by default untouched."""
        return picture

    def record(self, predicted: Any) -> dict[str, Any]:
        """What `predict` gave for an image, ready for JSON; by default that is features. Maps belong into `files`."""
        return {"features": predicted}

    def files(self, predicted: Any) -> dict[str, np.ndarray]:
        """What `predict` gave for an image as maps, by what their PNG files' names end in (such as `.seg.png`).

        Arrays are uint8 [H, W], [H, W, 3] or uint16 [H, W]; by default there are none.
        """
        return {}

    def embed_images(self, images: Tensor) -> Tensor:
        """Normalised [B, C, H, W] -> fp32 [B, E] of length 1, comparable with those of texts; `ModelError` else."""
        raise ModelError(f"encode_image: a {self.model.spec.task} model knows no texts; train one with the task clip")

    def embed_sentences(self, texts: Sequence[str]) -> Tensor:
        """Texts -> fp32 [texts, E] of length 1, comparable with those of images; `ModelError` else."""
        raise ModelError(f"encode_text: a {self.model.spec.task} model knows no texts; train one with the task clip")

    def summarise(self, images: Tensor, sizes: Sequence[Pair], limit: int) -> list[dict[str, float]]:
        """Of each image's prediction at most `limit` names with their shares, largest first.

        Raises ModelError where the task names nothing.
        """
        raise ModelError("this model was trained without labels, so it names nothing; fine-tune it first")
