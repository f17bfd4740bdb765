"""Time of a step's data on one node: cores that decode and storage that is read."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.forecast.hardware import Hardware

# CPU time of one sample on a core, fitted to `minivit bench loader` (photographs of 500x375 and 2000x1500) and to small
# PNGs; see RESULTS.md.
SAMPLE_S, BYTE_S, PIXEL_S = 1.0e-4, 12.8e-9, 13e-9
UNKNOWN_BYTES = 110_000  # of a sample whose data set does not exist yet: the mean of ImageNet-1k's


@dataclass(frozen=True)
class SampleCost:
    """What a loader worker reads and makes of one sample."""

    bytes: float
    pixels: float  # of all views together

    @property
    def decode_s(self) -> float:
        """CPU seconds of reading, decoding and augmenting it."""
        return SAMPLE_S + BYTE_S * self.bytes + PIXEL_S * self.pixels


@dataclass(frozen=True)
class LoadTime:
    """Seconds that a step's data takes on a node if nothing else holds it up."""

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

    A rank keeps one of its cores to itself. Where ranks compute on the cores that decode, `busy_s` are the seconds that
    a rank computes on all of its cores; decoding takes its turn.
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
