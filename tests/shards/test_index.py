from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import DataError
from pipeline.shards.build import build_index
from pipeline.shards.index import load_offsets
from pipeline.shards.index_file import load_index
from pipeline.shards.store import read_range
from pipeline.shards.tar import read_sample


@settings(max_examples=25, deadline=None)
@given(counts=st.lists(st.integers(0, 7), min_size=1, max_size=5))
def test_offsets_cut_out_each_sample(samples: Callable, write_tar: Callable, counts: list[int]) -> None:
    with tempfile.TemporaryDirectory() as name:
        written = []
        for number, count in enumerate(counts):
            part = samples(count, first=len(written))
            write_tar(Path(name) / f"{number}.tar", part)
            written += part
        built = build_index(name, workers=1)
        index = load_index(name)
        assert index.counts.tolist() == counts
        assert index.digest == built.digest
        found = []
        for shard in index.shards:
            offsets = load_offsets(shard)
            assert offsets.dtype == np.uint64
            for start, stop in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
                found.append(read_sample(read_range(shard.url, start, stop)))
        assert found == written
        labels = [int(members["cls"]) for _, members in written]
        bounds = {"low": min(labels), "high": max(labels)} if labels else {}
        assert index.totals == ({"class_id": {"missing": 0, "bad": 0, "unusable": 0, **bounds}} if labels else {})


def test_the_digest_names_content_not_place(folder: Path, tmp_path: Path) -> None:
    digest = build_index(str(folder), workers=1).digest
    moved = folder.rename(tmp_path.parent / f"{tmp_path.name}-moved")
    assert load_index(str(moved)).digest == digest


def test_a_sidecar_of_another_tar_is_refused(folder: Path) -> None:
    build_index(str(folder), workers=1)
    path = folder / "train-000000.tar.idx"
    data = bytearray(path.read_bytes())
    data[40] ^= 1  # in the hash
    path.write_bytes(data)
    with pytest.raises(DataError, match="belongs to another tar"):
        load_offsets(load_index(str(folder)).shards[0])
