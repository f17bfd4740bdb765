"""Iterates over the samples of one shard, for tools that read all of them."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.shards import store
from pipeline.shards.index import ShardInfo, load_offsets
from pipeline.shards.tar import TornTar, read_sample

AT_ONCE = 32 << 20  # bytes of neighbouring samples that are read together

RawMembers = dict[str, memoryview]


def shard_samples(shard: ShardInfo) -> Iterator[tuple[int, str, RawMembers | None, str]]:
    """Yields (number, key, members, fault) of each sample; if it is torn, members is None and fault says why.

    Raises DataError if the shard or its sidecar cannot be read.
    """
    offsets = load_offsets(shard).astype(int).tolist()
    first = 0
    while first < shard.samples:
        last = first + 1
        while last < shard.samples and offsets[last + 1] - offsets[first] <= AT_ONCE:
            last += 1
        data = memoryview(store.read_range(shard.url, offsets[first], offsets[last]))
        for number in range(first, last):
            start, stop = offsets[number] - offsets[first], offsets[number + 1] - offsets[first]
            try:
                key, members = read_sample(data[start:stop])
            except TornTar as tear:
                yield number, f"#{number}", None, f"the tar {tear}"
            else:
                yield number, key, members, ""
        first = last
