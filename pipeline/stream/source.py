"""The data sets of a training stream, and the sample order that driver, ranks and loader workers derive from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from pipeline.config.data import SQUASH, AugmentConfig, DataConfig, DatasetConfig, PlainConfig
from pipeline.shards.index import DatasetIndex
from pipeline.shards.members import Keys
from pipeline.stream.mixture import Mixture
from pipeline.stream.order import Order
from pipeline.stream.quarantine import load_excluded
from pipeline.targets.base import Target
from pipeline.text.tokenizer import Tokenizer


@dataclass(frozen=True, eq=False)
class Source:
    """One data set of a stream: its shards, its weight, and the treatment of its samples. Picklable."""

    name: str  # from the config
    index: DatasetIndex
    config: DatasetConfig
    augment: AugmentConfig
    weight: int = 1  # slots in a block of the mixture
    targets: Mapping[str, Target] = field(default_factory=dict)  # by kind

    @property
    def keys(self) -> Keys:
        """The keys of the members; the config's image key overrides the index's."""
        return self.index.keys.override(self.config.image_key)

    def with_tokenizer(self, tokenizer: Tokenizer | None) -> Source:
        """The data set with this tokenizer for its texts; unchanged if None."""
        if tokenizer is None:
            return self
        return replace(self, targets={kind: one.with_tokenizer(tokenizer) for kind, one in self.targets.items()})


def evaluation_of(train: Sequence[Source], val: Source | None) -> PlainConfig:
    """Evaluation preprocessing of a stage: that of its validation data, or else of the first training data with one."""
    said = (source.config.eval for source in (val, *train) if source)
    return next((how for how in said if how), SQUASH)


def build_mixture(sources: Sequence[Source], data: DataConfig, seed: int) -> Mixture:
    """The order of a stream's samples under one seed, without the samples in `data.exclude`.

    Raises DataError if a data set cannot be split into the lanes, or `data.exclude` is not a manifest.
    """
    orders = []
    for number, source in enumerate(sources):
        excluded = {}
        if data.exclude:
            excluded = load_excluded(data.exclude, source.index, source.name if len(sources) > 1 else None)
        own_seed = source_seed(seed, number)
        orders.append(
            Order(
                source.index.counts,
                lanes=data.lanes,
                window=data.window,
                seed=own_seed,
                excluded=excluded,
                name=source.name,
            )
        )
    return Mixture(orders, [source.weight for source in sources], seed)


def source_seed(seed: int, number: int) -> int:
    """Seed of a mixture's data set, so that all are shuffled independently, and the first as it would be alone."""
    return seed if number == 0 else int(np.random.SeedSequence((seed, number)).generate_state(1, np.uint64)[0])
