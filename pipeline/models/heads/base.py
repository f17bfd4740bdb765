"""What a kind of head declares for plans and checks. Imports no torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, NamedTuple

if TYPE_CHECKING:
    from pipeline.models.heads.head import Head
    from pipeline.models.spec import HeadSpec, Pair, ViTSpec


class Reads(NamedTuple):
    """What a head reads from the encoder: full outputs of `layers`, numbered from 0, and tokens of the last one.

    `num_tokens` counts the leading tokens of the last output; None means all. The last layer computes no others, unless
    another head reads them.
    """

    layers: tuple[int, ...] = ()
    num_tokens: int | None = None


class HeadKind(ABC):
    """A kind of head; its package defines one instance, `HEAD`.

    In its methods, `spec` is a head of this kind in a model, with the outputs and options that the task gave it, and
    `backbone` what it stands on. Plans and forecasts are made of its counts, which must be those of the module.

    `output` names its output in exported graphs. `dropped` heads serve only pretraining, so users of the model drop
    them and keep the backbone. `vectors` are its tokens and positions, which have no weight decay, whatever their rank.
    `copies` maps its tensors to those of the refined head that initialise them.
    """

    output: ClassVar[str] = "logits"
    vectors: ClassVar[tuple[str, ...]] = ()
    copies: ClassVar[Mapping[str, str]] = {}
    dropped: ClassVar[bool] = False

    @abstractmethod
    def check(self, spec: HeadSpec, backbone: ViTSpec) -> None:
        """Raise `ModelError` for invalid settings, and for tokens or layers that the backbone lacks."""

    def reads(self, spec: HeadSpec, backbone: ViTSpec) -> Reads | None:
        """What it reads from a forward pass; None if the task calls it instead of the model."""
        return Reads()

    def refines(self, spec: HeadSpec) -> str | None:
        """The head whose output this one changes, called with that head and its output; None if it has its own."""
        return None

    def class_tensors(self, spec: HeadSpec) -> tuple[str, ...]:
        """Names of its tensors whose rows are the classes; none if its outputs are not classes."""
        return ()

    def layer(self, name: str, depth: int) -> int:
        """Layer number of one of its parameters for layer-wise decay; the blocks have 1 to `depth`."""
        return depth + 1

    @abstractmethod
    def num_parameters(self, spec: HeadSpec, backbone: ViTSpec) -> int:
        """Number of its trainable parameters."""

    @abstractmethod
    def flops(self, spec: HeadSpec, backbone: ViTSpec, grid: Pair) -> int:
        """FLOPs of its matrix products for one image of `grid` patches; a multiply and an add count as two."""

    def kept_values(self, spec: HeadSpec, backbone: ViTSpec, grid: Pair) -> int:
        """Values it keeps for the backward pass per image of `grid` patches; 0 if they are only a vector or two."""
        return 0

    @abstractmethod
    def build(self, spec: HeadSpec, backbone: ViTSpec) -> Head:
        """Returns the newly initialised module; only this method imports torch."""
