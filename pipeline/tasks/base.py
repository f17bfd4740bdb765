"""A model with its training task. Everything that a step or an evaluation computes is one call of it.

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

if TYPE_CHECKING:  # needed only to draw predictions, and slow to import
    import numpy as np

    from pipeline.images.decode import Pixels

Tensors = Mapping[str, Tensor]


class Outputs(NamedTuple):
    """Training outputs for a micro-batch."""

    losses: Tensor  # fp32 [T]: sums over the micro-batch, with weights and coefficients; not divided by normalisers yet
    sums: Tensor  # float64 [S], detached
    rows: Tensors = MappingProxyType({})  # name -> fp32 or int64 [B, ...]: per-sample inputs of a coupled loss
    shared: Tensors = MappingProxyType({})  # name, distinct from rows' -> fp32: its inputs that belong to no sample


class Coupled(NamedTuple):
    """The result of a loss that couples samples for a rank's share of the global batch."""

    loss: Tensor  # fp32 []: the rank's part; the parts of all ranks add up to the loss of the global batch
    sums: Tensor  # float64 [S], detached, added to those of the micro-batches


class Evaluated(NamedTuple):
    """Evaluation outputs for a micro-batch."""

    sums: Tensor  # float64 [S], with the same names as in training
    predicted: Any  # input of the task's collectors


class Graph(NamedTuple):
    """An additional graph of an export: its module, two examples [2, ...] of each input, and its output names."""

    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]


class Compared(NamedTuple):
    """The task's prediction for a sample and the ground truth, both as `draw` takes them."""

    size: Pair | None  # the image's own height and width; None if predictions have no location in the image
    truth: Any
    predicted: Any
    caption: str


class TaskModule(nn.Module, ABC):
    """A task on a model; only the model has parameters.

    Every rank builds one for the stage that it trains, and one for each model that it evaluates. A training step calls
    `normalisers`, then `loss` for each micro-batch and, if `coupled`, `couple`. An evaluation calls `evaluate` for each
    micro-batch and hands what it predicted to the `collectors`. `predict` and what follows it serve `load_model`,
    `minivit predict` and exports, outside ranks.

    Measures are kept as sums, so that they add up over micro-batches, ranks and restarts; `sum_names` names them. What
    `means` and collectors return is named as in the `Task`'s schema, `measured`: reports leave out other names.
    """

    sum_names: tuple[str, ...]
    coupled: bool = False  # whether `couple` adds a loss that depends on several samples at once
    follower: Frozen[MiniViT] | None = None  # a teacher whose weights are the moving average of the model's
    momentum: float = 0.0  # initial weight of the old average in that moving average
    any_size: bool = False  # whether the `exported` module takes images of any size that is a multiple of the patch
    file_limit: str = ""  # the most that a pixel of its `files` holds, with its unit, if predictions can exceed it
    ranked: bool = False  # whether it outputs rows [B, M, ...] sorted by score: equal scores may come in any order

    def __init__(self, model: MiniViT, preprocess: Preprocess) -> None:
        """`preprocess.eval` defines how evaluation and prediction resize images to the model's size."""
        super().__init__()
        self.model, self.preprocess = model, preprocess
        self._pooling: Pooling | None = None

    def forward(self, views: Tensors, targets: Tensors, weights: Tensor, keys: Tensors) -> Outputs | Evaluated | Tensor:
        """`loss` in training mode, otherwise `evaluate`, or features: the single entry point that module hooks see.

        Args:
            views: group -> normalised [B, C, H, W], or [B, V, C, H, W] if a group has several views.
            targets: field -> [B, ...]; for a ragged field F the values, with "F.offsets" int64 [B + 1].
            weights: fp32 [B], 0 for samples that must be ignored: stand-ins and padding.
            keys: group -> int64 [B] or [B, V]; random draws for a sample depend only on its keys.
        """
        if self._pooling:
            return pooled(self.model, views["image"], self._pooling)
        act = self.loss if self.training else self.evaluate
        return act(views, targets, weights, keys)

    @contextmanager
    def embedding(self, pooling: Pooling) -> Iterator[Callable[[Tensor], Tensor]]:
        """Within this context the module returns the features of `pooled` for normalised images [B, C, H, W].

        Yields a function that calls it with images.
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
        """The part of the loss that couples samples, from the outputs of `loss`; must not read parameters.

        Args:
            rows: name -> [n, ...] of this rank's share, independent of its split into micro-batches.
            shared: as returned for the first micro-batch.
            weights: fp32 [n]; samples of weight 0 must be ignored.
            ranks: access to rows of, or sums over, all ranks. Divide values identical on every rank by `ranks.count`.
            seed: for the step's random draws; the same on every rank.
        """
        raise NotImplementedError(f"{type(self).__name__} couples no samples")

    @abstractmethod
    def evaluate(self, views: Tensors, targets: Tensors, weights: Tensor, keys: Tensors) -> Evaluated:
        """Measures of a micro-batch, whose targets are neither mixed nor smoothed."""

    @abstractmethod
    def means(self, sums: Tensor) -> dict[str, float]:
        """Measures from sums [S] over all ranks, without those that are undefined for these samples."""

    def normalisers(self, batch: Batch) -> Tensor:
        """float64 [T]: the divisor of each loss term for a rank's whole share, to be summed over ranks.

        Default: for a single term, the total weight of the samples.
        """
        return batch.weights.double().sum()[None]

    def collectors(self, *, validation: bool) -> dict[str, Collector]:
        """Collectors of an evaluation by name; only cheap ones for `validation`, as training waits for it."""
        return {}

    def mistakes(self, predicted: Any, batch: Batch) -> Tensor | None:
        """The error of the prediction of `evaluate` for each sample, fp32 [B]; 0 if it is right.

        The worst samples are shown with `compared`. Default: None, if the task defines no error.
        """
        return None

    def compared(self, predicted: Any, batch: Batch, row: int) -> Compared:
        """Compare prediction and truth of one sample of a micro-batch; called only if there are `mistakes`."""
        raise NotImplementedError(f"{type(self).__name__} does not say how wrong it is")

    def predict(self, images: Tensor, sizes: Sequence[Pair], **options: Any) -> list[Any]:
        """The model's prediction for each image as plain data.

        Args:
            images: normalised [B, C, H, W], at the model's size.
            sizes: (height, width) of the images before they were resized.
            options: the task's `predict_options`.

        Raises:
            ModelError: the task makes no predictions for images.
        """
        raise ModelError(
            f"predict: a model of the task {self.model.spec.task} predicts nothing about images; fine-tune it for "
            "another task first"
        )

    def exported(self) -> nn.Module:
        """The module to export for normalised images [B, C, H, W], with all post-processing that needs no image sizes.

        It returns a tensor [B, ...], or several in the order of `output_names`; no shape depends on the image content.
        Default: the model itself.
        """
        return self.model

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs of `exported`; default: `ModelSpec.output_names`."""
        return self.model.spec.output_names

    def exported_beside(self) -> dict[str, Graph]:
        """Graphs with inputs other than images, by file name; default: none."""
        return {}

    def draw(self, picture: Pixels, predicted: Any) -> Pixels:
        """Draw a prediction of `predict` on a picture, uint8 [H, W, 3] at the image's own size; default: unchanged."""
        return picture

    def record(self, predicted: Any) -> dict[str, Any]:
        """A prediction of `predict` for one image as JSON-serialisable data; maps go to `files`.

        Default: `features`, as tasks without labels predict them.
        """
        return {"features": predicted}

    def files(self, predicted: Any) -> dict[str, np.ndarray]:
        """A prediction of `predict` for one image as maps, by the suffix of their PNG files (such as `.seg.png`).

        Arrays are uint8 [H, W], [H, W, 3] or uint16 [H, W]; default: none.
        """
        return {}

    def clipped(self, predicted: Any) -> int:
        """How many pixels of a prediction of `predict` for one image exceed what its `files` hold, `file_limit`."""
        return 0

    def embed_images(self, images: Tensor) -> Tensor:
        """Normalised [B, C, H, W] -> unit vectors fp32 [B, E], comparable with those of texts.

        Raises `ModelError` if the model has no text encoder.
        """
        raise ModelError(
            f"encode_image: a {self.model.spec.task} model does not encode texts; train one with the task clip"
        )

    def embed_sentences(self, texts: Sequence[str]) -> Tensor:
        """Texts -> unit vectors fp32 [texts, E], comparable with those of images.

        Raises `ModelError` if the model has no text encoder.
        """
        raise ModelError(
            f"encode_text: a {self.model.spec.task} model does not encode texts; train one with the task clip"
        )

    def summarise(self, images: Tensor, sizes: Sequence[Pair], limit: int) -> list[dict[str, float]]:
        """At most `limit` names with their shares for each image's prediction, largest first.

        Raises ModelError if the task predicts no names; the default.
        """
        raise ModelError(
            "this model predicts no classes; `minivit predict --out FOLDER` writes what it predicts, and fine-tuning "
            "can add classes"
        )
