"""How many neighbours the data can give; needs no torch, so plans stay quick."""

from __future__ import annotations

from pipeline.config.probe import KnnConfig, RetrievalConfig
from pipeline.errors import ConfigError

DEFAULT_KS = (5, 10, 20, 50, 100, 200)  # of which those are tried that the data can give
SHARE, MOST = 0.1, 10_000  # of the training samples that settings are chosen on: of all, and in number


def num_held_out(total: int) -> int:
    """The part of so many training samples that settings are chosen on."""
    return max(min(round(SHARE * total), MOST), 1)


def neighbours(config: KnnConfig, samples: int, where: str) -> list[int]:
    """The numbers of neighbours to try, given so many training samples.

    Raises ConfigError if there are fewer samples than a number asks for; of several numbers, without those on which one
    is chosen.
    """
    asked = config.asked or [k for k in DEFAULT_KS if k <= samples - num_held_out(samples)] or [1]
    most = samples - num_held_out(samples) if len(asked) > 1 else samples
    if max(asked) > most:
        held = f", and {num_held_out(samples):,} of them are held out to choose k on" if most < samples else ""
        raise ConfigError(
            f"{where}.k: found {max(asked)}, but the training data have {samples:,} good samples{held}; take at most "
            f"{most:,}"
        )
    return asked


def check_recall(config: RetrievalConfig, samples: int, where: str) -> None:
    """Raise ConfigError if a gallery of so many samples, the query not among them, is smaller than a k."""
    if max(config.at) > samples - 1:
        raise ConfigError(
            f"{where}.at: found {max(config.at)}, but the test data have {samples:,} good samples, one of which is the "
            f"query; take at most {samples - 1:,}"
        )
