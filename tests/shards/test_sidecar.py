from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import DataError
from pipeline.shards.sidecar import HEADER, SUFFIX, Sidecar, read_sidecar, sidecar_bytes, write_sidecar


@given(st.lists(st.integers(0, 2**60)).map(sorted), st.binary(min_size=32, max_size=32))
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, offsets: list[int], digest: bytes) -> None:
    url = str(tmp_path_factory.getbasetemp() / "a.tar")
    write_sidecar(url, Sidecar(2**60, digest.hex(), np.array([0, *offsets], np.uint64)))
    again = read_sidecar(url)
    assert again.offsets.tolist() == [0, *offsets]
    assert (again.tar_bytes, again.sha256, again.samples) == (2**60, digest.hex(), len(offsets))
    assert Path(url + SUFFIX).stat().st_size == sidecar_bytes(len(offsets))


def test_the_offsets_can_be_mapped_by_any_reader(tmp_path: Path) -> None:
    write_sidecar(str(tmp_path / "a.tar"), Sidecar(4096, "00" * 32, np.array([0, 1024, 2048], np.uint64)))
    mapped = np.memmap(tmp_path / "a.tar.idx", "<u8", "r", offset=HEADER.size)
    assert mapped.tolist() == [0, 1024, 2048]
    assert HEADER.size % 8 == 0


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: b"", "not a shard's sidecar"),
        (lambda data: b"?" + data[1:], "not a shard's sidecar"),
        (lambda data: data[:8] + b"\x02" + data[9:], "sidecar version 2"),
        (lambda data: data[:-8], "but 2 samples need"),
        (lambda data: data[:-8] + b"\xff" * 8, "are not in order"),
        (lambda data: data[:-16] + b"\xff\xff" + data[-14:], "are not in order"),
    ],
)
def test_damage_is_named_with_the_remedy(tmp_path: Path, damage, words: str) -> None:
    write_sidecar(str(tmp_path / "a.tar"), Sidecar(4096, "00" * 32, np.array([0, 1024, 2048], np.uint64)))
    path = tmp_path / "a.tar.idx"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=rf"a.tar.idx: .*{words}.*run `minivit shards index"):
        read_sidecar(str(tmp_path / "a.tar"))
