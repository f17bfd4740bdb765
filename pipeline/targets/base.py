"""What a kind of label can do: be read, moved with its image, mixed, and put into the buffers of a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self

import numpy as np

from pipeline.config.targets import TargetConfig
from pipeline.errors import DataError

if TYPE_CHECKING:  # an index needs no image libraries
    from pipeline.images.decode import Pixels
    from pipeline.images.geometry import Box, Geometry, Size
    from pipeline.text.tokenizer import Tokenizer

Merge = Literal["sum", "min", "max"]
Summary = Mapping[str, int | None]  # by column; None where no sample has anything to say

# Columns that the index has of every kind: samples without it, those whose label is bad, and those that lack it or
# the image.
COUNTS: Mapping[str, Merge] = {"missing": "sum", "bad": "sum", "unusable": "sum"}


class Field(NamedTuple):
    """One tensor of a batch, by what it holds of each sample; `fill` is what bad samples and padding hold.

    A leading None in the shape makes it ragged: as many entries as a sample has, and no `fill`.
    """

    dtype: str
    shape: tuple[int | None, ...] = ()
    fill: float = 0

    @property
    def ragged(self) -> bool:
        return None in self.shape[:1]


class BadLabel(ValueError):
    """A label that cannot be used; the message is the reason, and the sample is left out as one with a torn image."""


class Mixing(NamedTuple):
    """How a sample was mixed with another: its own share, and CutMix's box, in which the other is seen."""

    share: float
    box: Box | None = None


class ClassMap(NamedTuple):
    """What the classes of a data set mean in a stage."""

    names: tuple[str, ...]  # of the data set
    numbers: tuple[int, ...]  # the stage's class of each; -1: ignored
    num_classes: int  # of the stage

    @classmethod
    def same(cls, names: tuple[str, ...]) -> ClassMap:
        """The data set's classes are the stage's."""
        return cls(names, tuple(range(len(names))), len(names))


@dataclass(frozen=True)
class Target(ABC):
    """One kind of label as one data set holds it. Picklable; subclasses stand in a file named as their `kind`.

    What `decode` returns is the value that the other methods take.
    """

    kind: ClassVar[str]
    default_members: ClassVar[tuple[str, ...]]
    told_by_name: ClassVar[bool] = True  # whether members of these names hold it, and not perhaps something else
    mixes: ClassVar[bool] = False  # whether mixup and CutMix can be asked for
    moves: ClassVar[bool] = False  # whether it lies in the picture, and moves with it
    picks: ClassVar[bool] = False  # whether a sample may have several labels, of which training draws one
    frames: ClassVar[bool] = False  # whether it says which part of its image is seen; it `moves`, too

    classed: ClassVar[bool] = True  # whether it has classes
    least_classes: ClassVar[int] = 2  # that there is something to learn from
    config: ClassVar[type[TargetConfig]] = TargetConfig  # its settings in `datasets.X.targets`
    reads: ClassVar[int] = 0  # bytes of a member that indexing reads, if it is no longer; 0: only that it is there
    columns: ClassVar[Mapping[str, Merge]] = {}  # of the index, besides COUNTS
    counted: ClassVar[str] = "samples"  # what `count` counts

    members: tuple[str, ...]  # extensions that are read

    @classmethod
    @abstractmethod
    def build(cls, members: tuple[str, ...], config: TargetConfig, classes: ClassMap | None) -> Self:
        """The target of a data set with these settings and classes; without them, for the tools, any number is one."""

    @abstractmethod
    def fields(self, size: Size, *, evaluation: bool) -> Mapping[str, Field]:
        """The tensors that it fills, by name, where the images have a size."""

    @abstractmethod
    def decode(self, members: Mapping[str, Any], image: Size | None) -> Any:
        """The label among a sample's members {extension: bytes}; `image` is the size of its image, if it `moves`.

        Raises:
            BadLabel: it is missing or damaged.
            DataError: it is outside the classes, which no single bad sample explains; goes on after "SHARD/KEY ".
        """

    @abstractmethod
    def inputs(self) -> dict[str, Any]:
        """What decides which label a sample has, as plain data: a part of the digest of a stage."""

    def transform(self, value: Any, geometry: Geometry) -> Any:
        """As the label moves with its image; only asked where it `moves`."""
        return value

    def pick(self, value: Any, rng: np.random.Generator) -> Any:
        """The one label that training sees this time; only asked where it `picks`."""
        return value

    def frame(self, value: Any, image: Size, size: Size, rng: np.random.Generator) -> Geometry:
        """What training shows of an image, at `size`, instead of a crop; only asked where it `frames`.

        Flips, colours and warps follow, from the same generator.
        """
        raise NotImplementedError(f"{self.kind} frames nothing")

    def cut(self, value: Any, image: Size, size: Size, load: Callable[[Geometry], Pixels]) -> Any:
        """The label with what evaluation is to see beside the whole image; only asked where it `frames`.

        `load` gives what a frame at `size` shows, uint8 [height, width, channels].
        """
        raise NotImplementedError(f"{self.kind} frames nothing")

    def with_tokenizer(self, tokenizer: Tokenizer) -> Self:
        """The target as a model with that tokenizer reads it."""
        return self

    def mix(self, value: Any, other: Any, how: Mixing) -> Any:
        """The label of an image that was mixed with another."""
        raise NotImplementedError(f"{self.kind} cannot be mixed")

    @abstractmethod
    def pack(self, value: Any, fields: Mapping[str, Any], row: int) -> None:
        """Write one sample: `fields[name][row] = ...`, ragged fields alike, with an array [entries, ...]."""

    def summarise(self, sizes: Mapping[str, int], content: Mapping[str, bytes]) -> dict[str, int]:
        """Its own columns of one sample that has all members: their bytes, and what was read of them.

        Raises BadLabel for a label that is known to be bad.
        """
        for extension in self.members:
            if not sizes[extension]:
                raise BadLabel(f"the member {extension} has no bytes")
        return {}

    @classmethod
    def known_classes(cls, summary: Summary) -> int | None:
        """How many classes a summary tells of; None where it does not."""
        return None

    def verify(self, members: Mapping[str, Any], image: Size | None) -> Iterator[str]:
        """What is wrong with a sample's label."""
        try:
            self.decode(members, image)
        except (BadLabel, DataError) as error:
            yield str(error)

    def count(self, value: Any) -> Mapping[int, int]:
        """How much of each class there is, in `counted`."""
        return {}

    def figures(self, value: Any) -> Mapping[str, Sequence[int]]:
        """Numbers of a sample's label, by what they are, whose spread over the data is worth knowing."""
        return {}

    def parts(self, value: Any) -> Sequence[int]:
        """A 64-bit number of each part of a label, the same for equal ones: of how many are there others?"""
        return ()

    def number(self, value: Any) -> int:
        """What tells the labels of two equal images apart; -1: nothing."""
        return -1

    def draw(self, picture: Pixels, value: Any, names: Sequence[str]) -> str:
        """Draw a label, moved there, into a picture, uint8 [height, width, 3]; returns a caption."""
        return ""

    def member(self, members: Mapping[str, Any], noun: str = "label") -> Any:
        """The first of its members. Raises BadLabel where a sample has none."""
        extension = self.members[0]
        if extension not in members:
            raise BadLabel(f"no {noun} member (looked for {extension}; found {', '.join(members)})")
        return members[extension]


def empty(field: Field) -> np.ndarray:
    """What a ragged field holds of a sample without any entry."""
    return np.empty((0, *(side for side in field.shape[1:] if side is not None)), field.dtype)


def total(columns: Mapping[str, Iterable[int | None]], rules: Mapping[str, Merge]) -> Summary:
    """Columns of several summaries as one."""
    found: dict[str, int | None] = {}
    for name, rule in rules.items():
        values = [value for value in columns[name] if value is not None]
        if rule == "sum":
            found[name] = sum(values)
        else:
            found[name] = (min if rule == "min" else max)(values, default=None)
    return found
