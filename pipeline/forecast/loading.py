"""Time to load a step's data on one node: decoding on its cores, and reading from storage."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.forecast.hardware import Hardware

# CPU time per sample, byte and pixel on one core, fitted to `minivit bench loader` (photographs of 500x375 and
# 2000x1500) and to small PNGs; see RESULTS.md.
SAMPLE_S, BYTE_S, PIXEL_S = 1.0e-4, 12.8e-9, 13e-9
UNKNOWN_BYTES = 110_000  # of a sample if the data set does not exist yet: ImageNet-1k's mean


@dataclass(frozen=True)
class SampleCost:
    """The bytes that a loader worker reads of a sample, and the pixels that it makes of them."""

    bytes: float
    pixels: float  # of all views together

    @property
    def decode_s(self) -> float:
        """CPU seconds to read, decode and augment it."""
        return SAMPLE_S + BYTE_S * self.bytes + PIXEL_S * self.pixels


@dataclass(frozen=True)
class LoadTime:
    """Seconds to load a step's data on a node if nothing else delays it."""

    decode_s: float
    read_s: float

    @property
    def slowest(self) -> str:
        return "loader" if self.decode_s >= self.read_s else "storage"

    @property
    def total_s(self) -> float:
        return max(self.decode_s, self.read_s)


def load_time(
    samples: int, sample: SampleCost, workers: int, busy_s: float, hardware: Hardware, *, ranks: int
) -> LoadTime:
    """Time of `samples` samples for each of a node's ranks, with `workers` loader workers each (0: in the rank).

    Each rank keeps one core for itself. `busy_s` are the seconds during which a rank computes on all of its cores;
    decoding waits for them if it runs on the same cores or in the rank itself.
    """
    work_s = samples * sample.decode_s
    if hardware.shares_cores:
        decode_s = max(busy_s + work_s / hardware.cores_per_gpu, work_s / max(workers, 1))
    elif workers == 0:
        decode_s = busy_s + work_s
    else:
        decode_s = work_s / min(workers, max(hardware.cores_per_gpu - 1, 1))
    read = samples * ranks * sample.bytes
    return LoadTime(decode_s, read / (1e9 * hardware.storage_gb_per_s))
