"""Rewrites a data set into other shards: evened out, shuffled, or split into parts; bytes of samples unchanged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.errors import DataError
from pipeline.shards import store, urls
from pipeline.shards.build import build_index, folder_lock
from pipeline.shards.index import DatasetIndex, load_offsets
from pipeline.shards.parallel import map_shards
from pipeline.shards.plan import agree_on_plan
from pipeline.shards.tar import TornTar
from pipeline.shards.write import TarWriter, shard_name

Rows = np.ndarray  # int64: positions of samples in the data set, its shards concatenated


@dataclass(frozen=True)
class RewriteTask:
    """Writes one shard from samples of the source."""

    index: DatasetIndex
    out: str

    def __call__(self, job: tuple[str, Rows]) -> None:
        name, rows = job
        ends = np.cumsum(self.index.counts)
        offsets: dict[int, np.ndarray] = {}
        with TarWriter(Path(self.out) / name, self.index.keys) as tar:
            for row in rows.tolist():
                number = int(np.searchsorted(ends, row, side="right"))
                shard = self.index.shards[number]
                if number not in offsets:
                    offsets = {number: load_offsets(shard)}  # rows mostly come in the order of the source
                sample = row - int(ends[number] - self.index.counts[number])
                start, stop = (int(byte) for byte in offsets[number][sample : sample + 2])
                try:
                    tar.copy(store.read_range(shard.url, start, stop))
                except TornTar as tear:
                    raise DataError(
                        f"{shard.url}: sample {sample} {tear}; `minivit shards verify` lists all that are damaged"
                    ) from None
            tar.finish()


def split_samples(
    index: DatasetIndex,
    out: Path,
    *,
    parts: Mapping[str, float],
    samples_per_shard: int,
    shuffle_seed: int | None,
    workers: int | None = None,
) -> DatasetIndex:
    """Splits samples into parts, each a prefix with its share of the samples; the shares add up to 1.

    The shards of a part differ by at most one sample. Without a seed, the parts are contiguous ranges of the source.
    Existing shards are kept, so the same call resumes after an interruption. Returns the index of all parts.
    Raises DataError for invalid shares, for a torn sample, or if `out` holds shards of a part's prefix made from
    something else.
    """
    if samples_per_shard < 1 or any(share <= 0 for share in parts.values()) or abs(sum(parts.values()) - 1) > 1e-6:
        given = ", ".join(f"{name}={share:g}" for name, share in parts.items())
        raise DataError(
            f"parts {given}, {samples_per_shard} samples per shard: expected shares above 0 that add up to 1"
        )
    if urls.is_local(index.url) and Path(index.url).resolve() == out.resolve():
        raise DataError(f"{out}: this is the source folder; choose another --out")
    rows = np.arange(index.num_samples)
    if shuffle_seed is not None:
        rows = np.random.Generator(np.random.PCG64(shuffle_seed)).permutation(rows)
    out.mkdir(parents=True, exist_ok=True)
    with folder_lock(str(out), "make"):
        jobs: list[tuple[str, Rows]] = []
        bounds = np.round(np.cumsum([0.0, *parts.values()]) * len(rows)).astype(int)
        for (prefix, share), first, stop in zip(parts.items(), bounds, bounds[1:], strict=False):
            plan = {"source": index.digest, "share": share, "samples_per_shard": samples_per_shard}
            agree_on_plan(out, prefix, plan | {"seed": shuffle_seed})
            # As few shards as possible, so even that they differ by at most one sample.
            chosen = np.array_split(rows[first:stop], max(-(-(stop - first) // samples_per_shard), 1))
            jobs += [(shard_name(prefix, number), part) for number, part in enumerate(chosen)]
        missing = [job for job in jobs if not (out / job[0]).is_file()]
        for _ in map_shards(RewriteTask(index, str(out)), missing, label="writing", workers=workers):
            pass
    names = ",".join(name for name, _ in jobs)
    pattern = f"{out}/{{{names}}}" if len(jobs) > 1 else f"{out}/{names}"
    return build_index(
        pattern, classes=index.classes, image_key=index.keys.image_key, targets=index.members, workers=workers
    )
