"""What a kind of head declares of itself, as far as plans and checks need it: nothing here needs torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, NamedTuple

if TYPE_CHECKING:
    from pipeline.models.heads.head import Head
    from pipeline.models.spec import HeadSpec, Pair, ViTSpec


class Reads(NamedTuple):
    """What a head reads of the encoder: whole outputs of `layers`, numbered from 0, and tokens of the last one.

    `num_tokens` are the leading tokens of the last output, None all of them. The last layer computes no others, unless
    another head reads them.
    """

    layers: tuple[int, ...] = ()
    num_tokens: int | None = None


class HeadKind(ABC):
    """A kind of head; its package has one, called `HEAD`.

    `output` names what it gives in exported graphs. One that serves pretraining alone is `dropped` by whoever uses the
    model: its backbone is all there is. `vectors` are its tokens and positions, on which weight decay does
    not act whatever their rank. `copies` maps its tensors to those of the head it refines that it starts from.
    """

    output: ClassVar[str] = "logits"
    vectors: ClassVar[tuple[str, ...]] = ()
    copies: ClassVar[Mapping[str, str]] = {}
    dropped: ClassVar[bool] = False

    @abstractmethod
    def check(self, spec: HeadSpec, backbone: ViTSpec) -> None:
        """Raise `ModelError` for settings it cannot have, and tokens or layers that the backbone has not."""

    def reads(self, spec: HeadSpec, backbone: ViTSpec) -> Reads | None:
        """What it reads of a forward pass; None if the model does not call it, but the task does."""
        return Reads()

    def refines(self, spec: HeadSpec) -> str | None:
        """The head whose output this one changes, called with that head and its output; None if it gives its own."""
        return None

    def class_tensors(self, spec: HeadSpec) -> tuple[str, ...]:
        """Names of its tensors whose rows are the classes; none if its outputs are not classes."""
        return ()

    def layer(self, name: str, depth: int) -> int:
        """Layer of one of its parameters for layer-wise decay: the blocks have 1 to `depth`."""
        return depth + 1

    @abstractmethod
    def num_parameters(self, spec: HeadSpec, backbone: ViTSpec) -> int:
        """Its trainable parameters."""

    @abstractmethod
    def flops(self, spec: HeadSpec, backbone: ViTSpec, grid: Pair) -> int:
        """Operations of its matrix products for one image of `grid` patches; a multiply and an add are two."""

    def kept_values(self, spec: HeadSpec, backbone: ViTSpec, grid: Pair) -> int:
        """Values per image of `grid` patches that it keeps for the backward pass; 0 where these are a vector or two."""
        return 0

    @abstractmethod
    def build(self, spec: HeadSpec, backbone: ViTSpec) -> Head:
        """The module, newly initialised; this alone imports torch."""
