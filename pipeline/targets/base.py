"""The interface of a kind of label: reading, transforming with the image, mixing, and packing into a batch."""

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
Summary = Mapping[str, int | None]  # by column; None if no sample has a value

# Columns that the index has for every kind: samples without it, samples with a bad label, and samples that lack it or
# the image.
COUNTS: Mapping[str, Merge] = {"missing": "sum", "bad": "sum", "unusable": "sum"}


class Field(NamedTuple):
    """One tensor of a batch, described by its part for one sample; `fill` is the value for bad samples and padding.

    `dtype` is NumPy's name of the type. A task finds the field as [B, *shape]. A leading None in the shape makes it
    ragged: each sample has its own number of entries, `fill` is unused, and a task finds all entries in a row, with
    `NAME.offsets`.
    """

    dtype: str
    shape: tuple[int | None, ...] = ()
    fill: float = 0

    @property
    def ragged(self) -> bool:
        return None in self.shape[:1]


class BadLabel(ValueError):
    """A label that cannot be used; the message is the reason, and the sample is skipped like one with a torn image."""


class Mixing(NamedTuple):
    """How a sample was mixed with another: its own share, and CutMix's box, which shows the other."""

    share: float
    box: Box | None = None


class ClassMap(NamedTuple):
    """The mapping from the classes of a data set to those of a stage."""

    names: tuple[str, ...]  # of the data set
    numbers: tuple[int, ...]  # the stage's class for each; -1: ignored
    num_classes: int  # of the stage

    @classmethod
    def same(cls, names: tuple[str, ...]) -> ClassMap:
        """The identity map: the data set's classes are the stage's."""
        return cls(names, tuple(range(len(names))), len(names))


@dataclass(frozen=True)
class Target(ABC):
    """One kind of label in one data set; each subclass is in a file named after its `kind`.

    The driver calls `build` and sends the target to ranks and their loader workers, so it is picklable. Loader workers
    call `decode` for each sample, then `pick`, `transform` and `mix` in training, or `cut` in evaluation, and last
    `pack`. Indexing calls `summarise`; other tools of `minivit shards` call `verify`, `count`, `figures`, `parts`,
    `number` and `draw`. A `value` is what `decode` has returned.
    """

    kind: ClassVar[str]
    default_members: ClassVar[tuple[str, ...]]
    recognised_by_name: ClassVar[bool] = True  # whether these member names identify the kind unambiguously
    mixes: ClassVar[bool] = False  # whether it supports mixup and CutMix
    moves: ClassVar[bool] = False  # whether it has a location in the image and transforms with it
    picks: ClassVar[bool] = False  # whether a sample may have several labels, of which training draws one
    frames: ClassVar[bool] = False  # whether it determines the visible part of its image; implies `moves`

    covers: ClassVar[bool] = False  # whether it is drawn instead of the picture

    classed: ClassVar[bool] = True  # whether it has classes
    least_classes: ClassVar[int] = 2  # minimum number of classes to learn anything
    config: ClassVar[type[TargetConfig]] = TargetConfig  # its settings in `datasets.X.targets`
    reads: ClassVar[int] = 0  # indexing reads members of at most this many bytes; 0: it only checks existence
    columns: ClassVar[Mapping[str, Merge]] = {}  # of the index, in addition to COUNTS
    counted: ClassVar[str] = "samples"  # unit of `count`

    members: tuple[str, ...]  # extensions to read

    @classmethod
    @abstractmethod
    def build(cls, members: tuple[str, ...], config: TargetConfig, classes: ClassMap | None) -> Self:
        """The target of a data set with these settings and classes; without them (for tools), any number is a class."""

    @abstractmethod
    def fields(self, size: Size, *, evaluation: bool) -> Mapping[str, Field]:
        """The tensors that it fills, by name, for images of this size; no other kind may use the same names."""

    @abstractmethod
    def decode(self, members: Mapping[str, Any], image: Size | None) -> Any:
        """The label in a sample's members {extension: bytes}; `image` is the size of its image if the label `moves`.

        Raises:
            BadLabel: it is missing or damaged.
            DataError: it is outside the classes, which a single bad sample cannot explain; the message must continue
                "SHARD/KEY ".
        """

    @abstractmethod
    def inputs(self) -> dict[str, Any]:
        """Everything that determines a sample's label, as plain data: part of a stage's digest."""

    def transform(self, value: Any, geometry: Geometry) -> Any:
        """Transform the label with its image; only called if it `moves`."""
        return value

    def pick(self, value: Any, rng: np.random.Generator) -> Any:
        """Draw the label to train on; only called if it `picks`."""
        return value

    def frame(self, value: Any, image: Size, size: Size, rng: np.random.Generator) -> Geometry:
        """The part of an image to show at `size` in training, instead of a crop; only called if it `frames`.

        Flips, colours and warps follow, with the same generator.
        """
        raise NotImplementedError(f"{self.kind} frames nothing")

    def cut(self, value: Any, image: Size, size: Size, load: Callable[[Geometry], Pixels]) -> Any:
        """The label with the crops that evaluation needs besides the whole image; only called if it `frames`.

        `load` returns the content of a frame at `size`, uint8 [height, width, channels].
        """
        raise NotImplementedError(f"{self.kind} frames nothing")

    def with_tokenizer(self, tokenizer: Tokenizer) -> Self:
        """The target with this tokenizer for its texts."""
        return self

    def mix(self, value: Any, other: Any, how: Mixing) -> Any:
        """The label of an image that was mixed with another image."""
        raise NotImplementedError(f"{self.kind} cannot be mixed")

    @abstractmethod
    def pack(self, value: Any, fields: Mapping[str, Any], row: int) -> None:
        """Write one sample: `fields[name][row] = ...`; ragged fields take an array [entries, ...]."""

    def summarise(self, sizes: Mapping[str, int], content: Mapping[str, bytes]) -> dict[str, int]:
        """Its own columns for a sample that has all members, from their sizes and the content that was read.

        Raises BadLabel for a label that is known to be bad.
        """
        for extension in self.members:
            if not sizes[extension]:
                raise BadLabel(f"the member {extension} is empty")
        return {}

    @classmethod
    def known_classes(cls, summary: Summary) -> int | None:
        """The number of classes according to a summary; None if unknown."""
        return None

    def verify(self, members: Mapping[str, Any], image: Size | None) -> Iterator[str]:
        """Yield the problems of a sample's label."""
        try:
            self.decode(members, image)
        except (BadLabel, DataError) as error:
            yield str(error)

    def count(self, value: Any) -> Mapping[int, int]:
        """The amount of each class, in units of `counted`."""
        return {}

    def figures(self, value: Any) -> Mapping[str, Sequence[int]]:
        """Named numbers of a sample's label for statistics over the data set."""
        return {}

    def parts(self, value: Any) -> Sequence[int]:
        """A 64-bit hash of each part of a label, to count duplicates."""
        return ()

    def number(self, value: Any) -> int:
        """A number to compare the labels of duplicate images; -1 if there is none."""
        return -1

    def draw(self, picture: Pixels, value: Any, names: Sequence[str]) -> str:
        """Draw a transformed label into a picture, uint8 [height, width, 3]; returns a caption."""
        return ""

    def member(self, members: Mapping[str, Any], noun: str = "label") -> Any:
        """The content of its first member. Raises BadLabel if the sample lacks it."""
        extension = self.members[0]
        if extension not in members:
            raise BadLabel(f"no {noun} member (looked for {extension}; found {', '.join(members)})")
        return members[extension]


def empty(field: Field) -> np.ndarray:
    """The value of a ragged field for a sample without entries."""
    return np.empty((0, *(side for side in field.shape[1:] if side is not None)), field.dtype)


def total(columns: Mapping[str, Iterable[int | None]], rules: Mapping[str, Merge]) -> Summary:
    """Merge the columns of several summaries."""
    found: dict[str, int | None] = {}
    for name, rule in rules.items():
        values = [value for value in columns[name] if value is not None]
        if rule == "sum":
            found[name] = sum(values)
        else:
            found[name] = (min if rule == "min" else max)(values, default=None)
    return found
