"""How many neighbours the data allow; needs no torch, so plans stay fast."""

from __future__ import annotations

from pipeline.config.probe import KnnConfig, RetrievalConfig
from pipeline.errors import ConfigError

DEFAULT_KS = (5, 10, 20, 50, 100, 200)  # tried as far as the data allow
SHARE, MOST = 0.1, 10_000  # training samples held out to choose settings: fraction, and maximum


def num_held_out(total: int) -> int:
    """How many of `total` training samples are held out to choose settings."""
    return max(min(round(SHARE * total), MOST), 1)


def neighbours(config: KnnConfig, samples: int, where: str) -> list[int]:
    """The numbers of neighbours to try, given `samples` training samples.

    Raises ConfigError if there are fewer samples than neighbours asked for; with several numbers to choose from,
    held-out samples do not count.
    """
    asked = config.asked or [k for k in DEFAULT_KS if k <= samples - num_held_out(samples)] or [1]
    most = samples - num_held_out(samples) if len(asked) > 1 else samples
    if max(asked) > most:
        held = f", and {num_held_out(samples):,} of them are held out to choose k on" if most < samples else ""
        raise ConfigError(
            f"{where}.k: found {max(asked)}, but the training data have {samples:,} good samples{held}; use at most "
            f"{most:,}"
        )
    return asked


def check_recall(config: RetrievalConfig, samples: int, where: str) -> None:
    """Raise ConfigError if a gallery of `samples` samples without the query is smaller than a k."""
    if max(config.at) > samples - 1:
        raise ConfigError(
            f"{where}.at: found {max(config.at)}, but the test data have {samples:,} good samples, one of which is "
            f"the query; use at most {samples - 1:,}"
        )
