"""One sample from raw members to pixels, targets and weight."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from pipeline.config.data import PlainConfig
from pipeline.config.views import ViewGroup
from pipeline.errors import DataError
from pipeline.images.decode import BadImage, Data, Pixels, read_header
from pipeline.images.geometry import Geometry, Size, Trail
from pipeline.images.load import load_frame
from pipeline.images.plain import load_plain
from pipeline.shards.members import Unusable
from pipeline.stream.augment import FrameChoice, load_augmented
from pipeline.stream.draws import AUGMENT, MIX, PICK, SlotDraws
from pipeline.stream.mix import mix_pair
from pipeline.stream.mixture import Mixture, Spot
from pipeline.stream.quarantine import Quarantine
from pipeline.stream.read import BadSample, RawSamples, WindowReader
from pipeline.stream.source import Source
from pipeline.targets.base import BadLabel, Target

NEIGHBOURS = 16  # maximum number to try as a stand-in
PADDING_SLOT = -1


class DecodedSample(NamedTuple):
    """The views of an image, uint8 [height, width, channels] each, the value of each target, and shard/key."""

    views: tuple[Pixels, ...]
    values: tuple[Any, ...]
    key: str


class Sample(NamedTuple):
    """The contents of a slot."""

    key: str  # shard/key
    views: tuple[Pixels, ...] | None = None  # None: black
    values: tuple[Any, ...] | None = None  # of its targets; None: blank
    weight: float = 1.0
    reason: str = ""  # for a stand-in, why the sample is bad


class SampleDecoder:
    """Decodes a sample's members to views and targets."""

    def __init__(self, source: Source, kinds: Sequence[str]) -> None:
        self._keys = source.keys
        self._targets = [source.targets[kind] for kind in kinds]
        self._moves = any(target.moves for target in self._targets)
        self._picks = any(target.picks for target in self._targets)
        self._framing = next((place for place, target in enumerate(self._targets) if target.frames), None)

    def decode(
        self,
        samples: RawSamples,
        number: int,
        load_views: Callable[[Data, Trail | None, FrameChoice | None], tuple[Pixels, ...]],
        *,
        pick: Callable[[], np.random.Generator] | None = None,
        cut: Callable[[Target, Any, Data], Any] | None = None,
    ) -> DecodedSample:
        """Views, targets and `shard/key` of a sample.

        `load_views` records the geometry of the first view in the trail, if given, and crops it to the frame of a
        target, if given. In training, targets are transformed to that view, and one of several labels is drawn with the
        generator from `pick`; in evaluation, without `pick`, `cut` lets a framing target load its own crops.

        Raises:
            BadSample: it is torn, lacks its image or label, or one of them is damaged; has the sample's `key`.
            DataError: a label is outside the classes, which a single bad sample cannot explain.
        """
        shard, index = samples.where(number)
        key = f"#{index}"  # until it is read from the tar
        try:
            key, members = samples.members(number)
            data, trail = self._keys.image_of(members), Trail() if self._moves else None
            if self._framing is None:
                views = load_views(data, trail, None)
                values = self._values(members, trail.geometry.source if trail else None, pick)
            else:
                header = read_header(data)
                values = self._values(members, (header.height, header.width), pick)
                target, value = self._targets[self._framing], values[self._framing]
                views = load_views(data, trail, partial(target.frame, value) if pick else None)
                if cut:
                    values[self._framing] = cut(target, value, data)
            if pick and trail:
                values = self._moved(values, trail.geometry)
        except (BadImage, BadLabel, BadSample, Unusable) as error:
            bad = BadSample(str(error))
            bad.key = key
            raise bad from None
        except DataError as error:
            raise DataError(f"{shard}/{key} {error}") from None
        return DecodedSample(views, tuple(values), f"{shard}/{key}")

    def _values(
        self, members: dict[str, memoryview], image: Size | None, pick: Callable[[], np.random.Generator] | None
    ) -> list[Any]:
        values = [target.decode(members, image) for target in self._targets]
        if pick and self._picks:
            pairs = zip(self._targets, values, strict=True)
            values = [target.pick(value, pick()) if target.picks else value for target, value in pairs]
        return values

    def _moved(self, values: list[Any], geometry: Geometry) -> list[Any]:
        pairs = zip(self._targets, values, strict=True)
        return [target.transform(value, geometry) if target.moves else value for target, value in pairs]


class TrainSampleBuilder:
    """Builds the sample of any slot of the training stream from the current windows of its lanes.

    A sample's augmentation depends only on the seed, its slot and the size. Mixup and CutMix mix it with its neighbour
    in the window (places 0 and 1, 2 and 3, ...), which the same worker reads anyway; an odd last one stays unmixed.
    `views` has the group of each view; `num_lanes` is the number of lanes of this worker.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        mixture: Mixture,
        windows: WindowReader,
        quarantine: Quarantine,
        *,
        channels: int,
        targets: Sequence[str],
        views: Sequence[ViewGroup],
        num_lanes: int,
    ) -> None:
        self._sources, self._mixture, self._windows, self._quarantine = sources, mixture, windows, quarantine
        self._decoders = [SampleDecoder(source, targets) for source in sources]
        self._targets = [[source.targets[kind] for kind in targets] for source in sources]
        self._channels = channels
        # By source: size and augmentation of each view.
        self._ways = [[(view.size, view.augment(source.augment)) for view in views] for source in sources]
        self._augment_draws, self._mix_draws = SlotDraws(mixture.seed, AUGMENT), SlotDraws(mixture.seed, MIX)
        self._pick_draws = SlotDraws(mixture.seed, PICK)
        self._mixes = [source.augment.mixes for source in sources]
        assert len(views) == 1 or not any(self._mixes), "several views of a sample cannot be mixed"
        self._keep = 2 * num_lanes * len(sources)  # a pair per lane
        self._recent: OrderedDict[tuple[int, Size], DecodedSample] = OrderedDict()

    def build(self, slot: int, spot: Spot, size: Size) -> Sample:
        """The sample of a slot at a size, or a stand-in of weight 0 if it is bad.

        Raises DataError as `SampleDecoder.decode` does.
        """
        source, index = spot.source, spot.offset
        window = self._windows.get((source, spot.epoch, spot.lane, spot.window), index, spot.length)
        try:
            one = self._decode(window, spot, index, slot, size)
        except BadSample as bad:
            shard, number = window.where(index)
            self._quarantine.bad(shard, number, bad.key, str(bad), self._sources[source].name)
            return self._stand_in(window, spot, size, f"{shard}/{bad.key}", str(bad))
        self._quarantine.good(self._sources[source].name)
        partner = index ^ 1
        if not self._mixes[source] or partner >= spot.length:
            return Sample(one.key, one.views, one.values)
        try:
            other = self._decode(window, spot, partner, self._mixture.slot_of(spot, partner), size)
        except BadSample:  # reported in its own slot
            return Sample(one.key, one.views, one.values)
        mixed, how = mix_pair(one.views[0], other.views[0], self._sources[source].augment, self._mix_draws.at(slot))
        both = zip(self._targets[source], one.values, other.values, strict=True)
        return Sample(one.key, (mixed,), tuple(target.mix(mine, its, how) for target, mine, its in both))

    def _decode(self, window: RawSamples, spot: Spot, index: int, slot: int, size: Size) -> DecodedSample:
        """A sample of a window, augmented for `slot`; recent ones are cached if a partner will need them for mixing."""
        source = spot.source
        if self._mixes[source] and (slot, size) in self._recent:
            return self._recent[slot, size]
        ways, channels = self._ways[source], self._channels
        background, draws = self._sources[source].config.background, self._augment_draws

        def load_views(data: Data, trail: Trail | None, frame: FrameChoice | None) -> tuple[Pixels, ...]:
            found = []
            for view, (own, augment) in enumerate(ways):
                rng, shown = draws.at(slot, view), None if view else trail
                found.append(load_augmented(data, own or size, channels, background, augment, rng, shown, frame))
            return tuple(found)

        one = self._decoders[source].decode(window, index, load_views, pick=partial(self._pick_draws.at, slot))
        if self._mixes[source]:
            self._recent[slot, size] = one
            if len(self._recent) > self._keep:
                self._recent.popitem(last=False)
        return one

    def _stand_in(self, window: RawSamples, spot: Spot, size: Size, key: str, reason: str) -> Sample:
        """The next good sample of the window without its targets, which preserves shapes and pixel statistics."""
        for step in range(1, min(spot.length, NEIGHBOURS + 1)):
            neighbour = (spot.offset + step) % spot.length
            try:
                one = self._decode(window, spot, neighbour, self._mixture.slot_of(spot, neighbour), size)
            except BadSample:
                continue
            return Sample(key, one.views, weight=0.0, reason=reason)
        return Sample(key, weight=0.0, reason=reason)


class EvalSampleBuilder:
    """Builds samples for evaluation: the whole image at one size, without random draws."""

    def __init__(
        self,
        source: Source,
        quarantine: Quarantine,
        *,
        channels: int,
        targets: Sequence[str],
        size: Size,
        plain: PlainConfig,
    ) -> None:
        self._name, self._decoder, self._quarantine = source.name, SampleDecoder(source, targets), quarantine
        self._channels, self._size, self._background = channels, size, source.config.background
        self._plain = plain

    def build(self, samples: RawSamples, number: int) -> Sample:
        """One of the samples; black with weight 0 if it is bad. Raises DataError as `SampleDecoder.decode` does."""
        try:
            one = self._decoder.decode(samples, number, self._load_views, cut=self._cut)
        except BadSample as bad:
            shard, index = samples.where(number)
            self._quarantine.bad(shard, index, bad.key, str(bad), self._name)
            return Sample(f"{shard}/{bad.key}", weight=0.0, reason=str(bad))
        self._quarantine.good(self._name)
        return Sample(one.key, one.views, one.values)

    def _load_views(self, data: Data, trail: Trail | None, frame: FrameChoice | None) -> tuple[Pixels]:
        return (load_plain(data, self._size, self._channels, self._background, self._plain, trail),)

    def _cut(self, target: Target, value: Any, data: Data) -> Any:
        header = read_header(data)
        load = partial(load_frame, data, header, channels=self._channels, background=self._background)
        return target.cut(value, (header.height, header.width), self._size, load)
