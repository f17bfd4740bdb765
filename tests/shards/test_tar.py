from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.shards.tar import (
    TarStream,
    TornTar,
    _read_unusual_sample,
    members,
    read_sample,
)

NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=300)
FORMATS = st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])


def tar_bytes(entries: list[tuple[str, bytes]], format: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for name, data in entries:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def listed(data: bytes) -> list[tuple[str, bytes]]:
    return [(m.name, data[m.data : m.data + m.size]) for m in members(TarStream(io.BytesIO(data)))]


@given(st.lists(st.tuples(NAMES, st.binary(max_size=1500)), max_size=6), FORMATS)
def test_finds_what_tarfile_finds(entries: list[tuple[str, bytes]], format: int) -> None:
    try:
        data = tar_bytes(entries, format)
    except ValueError:
        return  # ustar has no room for this name
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        expected = [(m.name.rstrip("/"), tar.extractfile(m).read()) for m in tar if m.isreg()]  # type: ignore[union-attr]
    assert [(name.rstrip("/"), content) for name, content in listed(data)] == expected


def test_passes_over_folders_and_links() -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for kind, name in ((tarfile.DIRTYPE, "d"), (tarfile.SYMTYPE, "l.cls"), (tarfile.LNKTYPE, "h.cls")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        info = tarfile.TarInfo("d/a.cls")
        info.size = 1
        tar.addfile(info, io.BytesIO(b"7"))
    assert listed(buffer.getvalue()) == [("d/a.cls", b"7")]


@given(st.lists(st.tuples(NAMES, st.binary(max_size=1500)), max_size=6), FORMATS, st.integers(0, 20))
def test_a_sample_is_read_quickly_as_it_is_read_carefully(
    entries: list[tuple[str, bytes]], format: int, damage: int
) -> None:
    try:
        data = bytearray(tar_bytes(entries, format)[:-1024].rstrip(b"\0"))
    except ValueError:
        return
    data += bytes(-len(data) % 512)
    if data and damage:
        data[damage * 31 % len(data)] ^= 0xFF

    def outcome(read: Callable[[memoryview], tuple[str, dict[str, memoryview]]]) -> object:
        try:
            key, parts = read(memoryview(bytes(data)))
        except TornTar as tear:
            return str(tear)
        return key, {name: bytes(part) for name, part in parts.items()}

    assert outcome(read_sample) == outcome(_read_unusual_sample)


@given(st.data())
def test_a_tar_cut_anywhere_before_its_marker_is_torn(data: st.DataObject) -> None:
    whole = tar_bytes([("a.png", b"x" * 700), ("n" * 200 + ".cls", b"1")])
    *_, last = members(TarStream(io.BytesIO(whole)))
    cut = data.draw(st.integers(0, last.end + 511))
    with pytest.raises(TornTar, match="byte"):
        listed(whole[:cut])


@given(st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), min_size=1, max_size=8))
@example([(124, ord("-"))])
def test_mutated_tars_end_in_members_or_torn(changes: list[tuple[int, int]]) -> None:
    data = bytearray(tar_bytes([("a.png", b"x" * 700), ("é" * 120 + ".cls", b"1")]))
    for position, value in changes:
        data[position % len(data)] = value
    try:
        found = listed(bytes(data))
    except TornTar:
        return
    assert all(len(content) <= len(data) for _, content in found)


@pytest.mark.parametrize("size", [b"-0000000001\0", b"9" * 11 + b"\0", b"\x80" + b"\xff" * 11])
def test_impossible_sizes_are_torn(size: bytes) -> None:
    data = bytearray(tar_bytes([("a.png", b"x" * 700)]))
    data[124:136] = size
    header = data[:148] + b" " * 8 + data[156:512]
    data[148:156] = b"%06o\0 " % sum(header)
    with pytest.raises(TornTar):
        listed(bytes(data))


def test_a_pax_record_with_an_endless_number_is_torn() -> None:
    data = tar_bytes([("é.png", b"")])
    record = data.index(b" path=")
    length = data[record - 2 : record]
    with pytest.raises(TornTar):
        listed(data.replace(length + b" path=", b"99 path=", 1))


def test_reads_one_sample_from_its_cut_out(tmp_path: Path) -> None:
    data = tar_bytes([("x/" + "k" * 150 + ".png", b"image"), ("x/" + "k" * 150 + ".cls", b"3")])
    *_, last = members(TarStream(io.BytesIO(data)))
    assert read_sample(data[: last.end]) == ("x/" + "k" * 150, {"png": b"image", "cls": b"3"})
    with pytest.raises(TornTar):
        read_sample(b"")


@pytest.mark.parametrize("length", [99, 100])
def test_a_name_that_fills_its_field_ends_there(length: int) -> None:
    name = "n" * (length - 4) + ".cls"
    data = tar_bytes([(name, b"1")], tarfile.USTAR_FORMAT)[:1024]
    assert read_sample(data) == (name[:-4], {"cls": b"1"})


def test_a_size_of_twelve_digits_has_no_end() -> None:
    data = bytearray(tar_bytes([("a.png", b"x" * 448)]))[:1024]
    data[124:136] = b"%012o" % 448
    data[148:156] = b"%06o\0 " % sum(data[:148] + b" " * 8 + data[156:512])
    assert read_sample(bytes(data)) == ("a", {"png": b"x" * 448})
