"""One sample from raw members to pixels, label and weight."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pipeline.config.schema import AugmentConfig, DatasetConfig
from pipeline.errors import DataError
from pipeline.shards.tar import parse_label
from pipeline.stream.augment import Size, load_augmented, load_plain
from pipeline.stream.decode import BadSample
from pipeline.stream.mix import mix
from pipeline.stream.order import AUGMENT, MIX, Order, generator
from pipeline.stream.quarantine import Quarantine
from pipeline.stream.read import Samples, WindowReader

NEIGHBOURS = 16  # how many are tried for a stand-in

Loaded = tuple[np.ndarray, int, str]  # image uint8 [height, width, channels], label, shard/key


PADDING_SLOT = -1


@dataclass(frozen=True)
class Sample:
    """What one slot holds. The target is mix * onehot(label) + (1 - mix) * onehot(label_mix)."""

    key: str  # shard/key
    image: np.ndarray | None  # uint8 [height, width, channels]; None for a black one
    label: int = 0
    label_mix: int = 0
    mix: float = 1.0
    weight: float = 1.0


class Members:
    """Loads the image and the label among a sample's members."""

    def __init__(self, dataset: DatasetConfig, num_classes: int) -> None:
        self._image_keys = [extension.strip().lower() for extension in dataset.image_key.split(";")]
        self._label_key = dataset.label_key.lower()
        self._num_classes = num_classes

    def load(self, samples: Samples, number: int, load_image: Callable[[bytes], np.ndarray]) -> Loaded:
        """Image, label and `shard/key` of a sample.

        Raises:
            BadSample: torn, without image or label, undecodable, or labelled by what is no number; has its `key`.
            DataError: the label is a number outside the classes, which no single bad sample explains.
        """
        shard, index = samples.where(number)
        key = f"#{index}"  # until the tar says
        try:
            key, members = samples.members(number)
            image = load_image(self._image(members))
            label = self._label(members)
        except BadSample as bad:
            bad.key = key
            raise
        if label >= self._num_classes:
            raise DataError(
                f"{shard}/{key} has label {label}, and labels must be 0 to {self._num_classes - 1} for "
                f"{self._num_classes} classes; correct the label or the dataset's `classes`"
            )
        return image, label, f"{shard}/{key}"

    def _image(self, members: dict[str, bytes]) -> bytes:
        for extension in self._image_keys:
            if extension in members:
                return members[extension]
        raise BadSample(f"no image member (looked for {', '.join(self._image_keys)}; found {', '.join(members)})")

    def _label(self, members: dict[str, bytes]) -> int:
        if self._label_key not in members:
            raise BadSample(f"no label member (looked for {self._label_key}; found {', '.join(members)})")
        label = parse_label(members[self._label_key])
        if label is None:
            raise BadSample(f"the label is {members[self._label_key][:40].decode('utf-8', 'replace')!r}, not a number")
        return label


class TrainSamples:
    """Makes the sample of any slot of the training stream, from the windows its lanes stand in.

    A sample's treatment depends on the seed, its slot and the size alone. Mixup and CutMix mix it with its neighbour
    in the window (places 0 and 1, 2 and 3, ...), which the same worker reads anyway; the odd last one stays pure.
    `num_lanes` are those of this worker.
    """

    def __init__(
        self,
        order: Order,
        windows: WindowReader,
        members: Members,
        augment: AugmentConfig,
        quarantine: Quarantine,
        *,
        channels: int,
        num_lanes: int,
    ) -> None:
        self._order, self._windows, self._members = order, windows, members
        self._augment, self._quarantine = augment, quarantine
        self._channels, self._seed = channels, order.seed
        self._keep = 2 * num_lanes  # a pair per lane
        self._mixes = augment.mixup > 0 or augment.cutmix > 0
        self._recent: OrderedDict[tuple[int, Size], Loaded] = OrderedDict()

    def make(self, slot: int, size: Size) -> Sample:
        """The sample of a slot at a size; a stand-in of weight 0 where it is bad. Raises DataError."""
        epoch, lane, position = (int(number) for number in self._order.place(slot))
        window, place = self._windows.get(epoch, lane, position)
        try:
            image, label, key = self._one(window, place, slot, size)
        except BadSample as bad:
            shard, number = window.where(place)
            self._quarantine.bad(shard, number, bad.key, str(bad))
            return self._stand_in(window, place, slot, size, f"{shard}/{bad.key}")
        self._quarantine.good()
        partner = place ^ 1
        if not self._mixes or partner >= len(window):
            return Sample(key, image, label, label)
        try:
            other, label_mix, _ = self._one(window, partner, slot + (partner - place) * self._order.lanes, size)
        except BadSample:  # reported in its own slot
            return Sample(key, image, label, label)
        mixed, share = mix(image, other, self._augment, generator(self._seed, MIX, slot))
        return Sample(key, mixed, label, label_mix, share)

    def _one(self, window: Samples, place: int, slot: int, size: Size) -> Loaded:
        """The sample at a place, augmented as `slot`; the last ones are kept where a partner is going to want them."""
        if (slot, size) in self._recent:
            return self._recent[slot, size]
        rng = generator(self._seed, AUGMENT, slot)
        one = self._members.load(
            window, place, lambda data: load_augmented(data, size, self._channels, self._augment, rng)
        )
        if self._mixes:
            self._recent[slot, size] = one
            if len(self._recent) > self._keep:
                self._recent.popitem(last=False)
        return one

    def _stand_in(self, window: Samples, place: int, slot: int, size: Size, key: str) -> Sample:
        """A copy of the next good sample of the window, so that shapes and pixel statistics stay as they were."""
        for step in range(1, min(len(window), NEIGHBOURS + 1)):
            neighbour = (place + step) % len(window)
            try:
                image, label, _ = self._one(window, neighbour, slot + (neighbour - place) * self._order.lanes, size)
            except BadSample:
                continue
            return Sample(key, image, label, label, weight=0.0)
        return Sample(key, None, weight=0.0)


class PlainSamples:
    """Makes samples for evaluation: the whole image at one size, nothing drawn."""

    def __init__(self, members: Members, quarantine: Quarantine, *, channels: int, size: Size) -> None:
        self._members, self._quarantine = members, quarantine
        self._channels, self._size = channels, size

    def make(self, samples: Samples, first: int, slot: int) -> Sample:
        """The sample of a slot from `samples`, which begin with slot `first`; raises DataError.

        Black and of weight 0 where it is bad, and where the slot is padding.
        """
        if slot == PADDING_SLOT:
            return Sample("", None, weight=0.0)
        number = slot - first
        try:
            image, label, key = self._members.load(
                samples, number, lambda data: load_plain(data, self._size, self._channels)
            )
        except BadSample as bad:
            shard, index = samples.where(number)
            self._quarantine.bad(shard, index, bad.key, str(bad))
            return Sample(f"{shard}/{bad.key}", None, weight=0.0)
        self._quarantine.good()
        return Sample(key, image, label, label)
