"""How long a checkpoint takes to save and to read, and how long training waits for it."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.forecast.hardware import Hardware

SAVE_BYTES_PER_S = 0.5e9  # at which a rank hashes and writes a checkpoint; see `minivit bench checkpoint`


@dataclass(frozen=True)
class SaveTime:
    write_s: float  # in the background
    wait_s: float  # of training, unless the next step hides it
    read_s: float  # after a failure


def save_time(checkpoint_bytes: int, ranks: int, nodes: int, hardware: Hardware) -> SaveTime:
    """The times of a checkpoint that all ranks write together. On cores that ranks share, they wait for all of it."""
    read_s = checkpoint_bytes / nodes / (1e9 * hardware.storage_gb_per_s)
    write_s = max(checkpoint_bytes / ranks / SAVE_BYTES_PER_S, read_s)
    copy_s = checkpoint_bytes / ranks / (1e9 * hardware.host_copy_gb_per_s)
    return SaveTime(write_s, write_s if hardware.shares_cores else copy_s, read_s)
