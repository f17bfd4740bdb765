"""One sample from raw members to pixels, label and weight."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple

from pipeline.config.data import PlainConfig
from pipeline.errors import DataError
from pipeline.images.decode import BadImage, Data, Pixels
from pipeline.images.load import Size
from pipeline.images.plain import load_plain
from pipeline.shards.members import Unusable
from pipeline.stream.augment import load_augmented
from pipeline.stream.draws import AUGMENT, MIX, SlotDraws
from pipeline.stream.mix import mix
from pipeline.stream.mixture import Mixture, Spot
from pipeline.stream.quarantine import Quarantine
from pipeline.stream.read import BadSample, Samples, WindowReader
from pipeline.stream.source import Source

NEIGHBOURS = 16  # how many are tried for a stand-in
PADDING_SLOT = -1


class Loaded(NamedTuple):
    """An image uint8 [height, width, channels], its label, and shard/key."""

    image: Pixels
    label: int
    key: str


class Sample(NamedTuple):
    """What one slot holds. The target is mix * onehot(label) + (1 - mix) * onehot(label_mix)."""

    key: str  # shard/key
    image: Pixels | None  # uint8 [height, width, channels]; None for a black one
    label: int = 0
    label_mix: int = 0
    mix: float = 1.0
    weight: float = 1.0
    reason: str = ""  # why it is bad, where this is a stand-in


class Members:
    """Loads the image and the label among a sample's members."""

    def __init__(self, source: Source, num_classes: int) -> None:
        self._keys = source.keys
        self._classes = source.labels if source.labels is not None else range(num_classes)

    def load(self, samples: Samples, number: int, load_image: Callable[[Data], Pixels]) -> Loaded:
        """Image, label and `shard/key` of a sample.

        Raises:
            BadSample: torn, without image or label, undecodable, or labelled by what is no number; has its `key`.
            DataError: the label is a number outside the classes, which no single bad sample explains.
        """
        shard, index = samples.where(number)
        key = f"#{index}"  # until the tar says
        try:
            key, members = samples.members(number)
            image = load_image(self._keys.image_of(members))
            label = self._keys.label_of(members)
        except (BadImage, BadSample, Unusable) as error:
            bad = BadSample(str(error))
            bad.key = key
            raise bad from None
        if label >= len(self._classes):
            raise DataError(
                f"{shard}/{key} has label {label}, and labels must be 0 to {len(self._classes) - 1} for "
                f"{len(self._classes)} classes; correct the label or the dataset's `classes`"
            )
        return Loaded(image, self._classes[label], f"{shard}/{key}")


class TrainSamples:
    """Makes the sample of any slot of the training stream, from the windows its lanes stand in.

    A sample's treatment depends on the seed, its slot and the size alone. Mixup and CutMix mix it with its neighbour
    in the window (places 0 and 1, 2 and 3, ...), which the same worker reads anyway; the odd last one stays pure.
    `num_lanes` are those of this worker.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        mixture: Mixture,
        windows: WindowReader,
        quarantine: Quarantine,
        *,
        channels: int,
        num_classes: int,
        num_lanes: int,
    ) -> None:
        self._sources, self._mixture, self._windows, self._quarantine = sources, mixture, windows, quarantine
        self._members = [Members(source, num_classes) for source in sources]
        self._channels = channels
        self._augment_draws, self._mix_draws = SlotDraws(mixture.seed, AUGMENT), SlotDraws(mixture.seed, MIX)
        self._mixes = [source.augment.mixes for source in sources]
        self._keep = 2 * num_lanes * len(sources)  # a pair per lane
        self._recent: OrderedDict[tuple[int, Size], Loaded] = OrderedDict()

    def make(self, slot: int, spot: Spot, size: Size) -> Sample:
        """The sample of a slot at a size; a stand-in of weight 0 where it is bad. Raises DataError."""
        source, index = spot.source, spot.offset
        window = self._windows.get((source, spot.epoch, spot.lane, spot.window), index, spot.length)
        try:
            image, label, key = self._one(window, spot, index, slot, size)
        except BadSample as bad:
            shard, number = window.where(index)
            self._quarantine.bad(shard, number, bad.key, str(bad), self._sources[source].name)
            return self._stand_in(window, spot, size, f"{shard}/{bad.key}", str(bad))
        self._quarantine.good(self._sources[source].name)
        partner = index ^ 1
        if not self._mixes[source] or partner >= spot.length:
            return Sample(key, image, label, label)
        try:
            other, label_mix, _ = self._one(window, spot, partner, self._mixture.slot_of(spot, partner), size)
        except BadSample:  # reported in its own slot
            return Sample(key, image, label, label)
        mixed, share = mix(image, other, self._sources[source].augment, self._mix_draws.at(slot))
        return Sample(key, mixed, label, label_mix, share)

    def _one(self, window: Samples, spot: Spot, index: int, slot: int, size: Size) -> Loaded:
        """A sample of a window, augmented as `slot`; the last ones are kept where a partner is going to want them."""
        source = spot.source
        if self._mixes[source] and (slot, size) in self._recent:
            return self._recent[slot, size]
        augment, channels = self._sources[source].augment, self._channels
        background, rng = self._sources[source].config.background, self._augment_draws.at(slot)
        one = self._members[source].load(
            window, index, lambda data: load_augmented(data, size, channels, background, augment, rng)
        )
        if self._mixes[source]:
            self._recent[slot, size] = one
            if len(self._recent) > self._keep:
                self._recent.popitem(last=False)
        return one

    def _stand_in(self, window: Samples, spot: Spot, size: Size, key: str, reason: str) -> Sample:
        """A copy of the next good sample of the window, so that shapes and pixel statistics stay as they were."""
        for step in range(1, min(spot.length, NEIGHBOURS + 1)):
            neighbour = (spot.offset + step) % spot.length
            try:
                image, label, _ = self._one(window, spot, neighbour, self._mixture.slot_of(spot, neighbour), size)
            except BadSample:
                continue
            return Sample(key, image, label, label, weight=0.0, reason=reason)
        return Sample(key, None, weight=0.0, reason=reason)


class PlainSamples:
    """Makes samples for evaluation: the whole image at one size, nothing drawn."""

    def __init__(
        self,
        source: Source,
        quarantine: Quarantine,
        *,
        channels: int,
        num_classes: int,
        size: Size,
        plain: PlainConfig,
    ) -> None:
        self._name, self._members, self._quarantine = source.name, Members(source, num_classes), quarantine
        self._channels, self._size, self._background = channels, size, source.config.background
        self._plain = plain

    def make(self, samples: Samples, number: int) -> Sample:
        """One of the samples; black and of weight 0 where it is bad. Raises DataError."""
        try:
            image, label, key = self._members.load(samples, number, self._load)
        except BadSample as bad:
            shard, index = samples.where(number)
            self._quarantine.bad(shard, index, bad.key, str(bad), self._name)
            return Sample(f"{shard}/{bad.key}", None, weight=0.0, reason=str(bad))
        self._quarantine.good(self._name)
        return Sample(key, image, label, label)

    def _load(self, data: Data) -> Pixels:
        return load_plain(data, self._size, self._channels, self._background, self._plain)
