"""A tar reader that gives the exact byte range of each member and detects every tear.

Supports POSIX ustar, pax and GNU long names, and refuses members whose content is not the bytes after their header.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from pipeline.shards.compressed import compressed_with
from pipeline.shards.members import split_name, split_plain_name
from pipeline.shards.pax import PART_OF_FILE, SPARSE_FILE, Unsupported, parse_pax, size_in, unreadable

BLOCK = 512
SKIP_CHUNK = 1 << 20
ADLER = 65521
CHECKSUM_BLANK = b" " * 8  # stands for the checksum while it is computed
MAX_NAME_RECORD = 1 << 20  # a longer "long name" or pax record is an attack or a tear, not a name

REGULAR = b"\0", b"0", b"7"
WITHOUT_DATA = b"1", b"2", b"3", b"4", b"5", b"6"  # links, devices, folders, pipes: their size field means nothing
LINKS = b"1", b"2"
LONG_NAME, LONG_LINK, SHARED_PAX = b"L", b"K", b"g"
PAX = b"x", b"X", SHARED_PAX
RECORDS = LONG_NAME, LONG_LINK, *PAX  # about the next member
UNREADABLE = {b"S": SPARSE_FILE, b"M": PART_OF_FILE}  # GNU's


class TornTar(ValueError):
    """The bytes are not an intact tar; the message says where and why, without a file name; `remedy` how to fix it."""

    def __init__(self, message: str, remedy: str = "write it again or remove it from the folder") -> None:
        super().__init__(message)
        self.remedy = remedy


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file in a tar: its headers begin at `start`, and its content is bytes `data : data + size`."""

    name: str
    start: int
    data: int
    size: int

    @property
    def end(self) -> int:
        """Where the next header begins: members fill whole blocks."""
        return _padded(self.data + self.size)


class TarStream:
    """A binary file read strictly forwards, which tracks its position and passes every byte to `observe`.

    `links` counts the members that would belong to a sample but are links, which have no content.
    """

    def __init__(self, file: BinaryIO, observe: Callable[[bytes], object] | None = None):
        self.file, self.observe, self.position, self.links = file, observe, 0, 0

    def read(self, size: int) -> bytes:
        """Reads the next `size` bytes; TornTar if the file ends earlier."""
        data = self.file.read(size)
        while len(data) < size:
            more = self.file.read(size - len(data))
            if not more:
                raise TornTar(f"ends at byte {self.position + len(data)}, in the middle of a member")
            data += more
        self.position += size
        if self.observe:
            self.observe(data)
        return data

    def advance(self, position: int) -> None:
        while self.position < position:
            self.read(min(SKIP_CHUNK, position - self.position))

    def drain(self) -> int:
        """Reads everything after the end-of-archive marker; returns its size in bytes without the padding."""
        content = None
        while data := self.file.read(SKIP_CHUNK):
            if content is None:
                content = first_content(data, self.position)
            self.position += len(data)
            if self.observe:
                self.observe(data)
        return 0 if content is None else self.position - content


def members(stream: TarStream, *, needs_marker: bool = True) -> Iterator[Member]:
    """Yields every regular file of a tar, in order. The caller may read a member's data from `stream` before the next.

    Afterwards, `stream` is past the end-of-archive marker (a block of zeros) or, without `needs_marker`, at the end of
    the data, as when reading a slice of whole members. Raises TornTar.
    """
    start, long_name = stream.position, ""
    size_override: int | None = None
    while True:
        at = stream.position
        header = _read_header(stream, needs_marker)
        if header is None:
            return
        name, size, kind = _parse_header(header, at)
        if kind in RECORDS:
            if size > MAX_NAME_RECORD:
                raise TornTar(f"has a name record of {size} bytes at byte {at}")
            record = stream.read(size)
            if kind == LONG_NAME:
                long_name = record.rstrip(b"\0").decode("utf-8", "surrogateescape")
            elif kind in PAX:
                path, pax_size = _read_pax(record, at, kind == SHARED_PAX)
                long_name = path or long_name
                size_override = size_override if pax_size is None else pax_size
            stream.advance(_padded(stream.position))
            continue
        _refuse(UNREADABLE.get(kind), at)
        size = size if size_override is None else size_override
        size = 0 if kind in WITHOUT_DATA else size
        end = _padded(stream.position + size)
        if kind in REGULAR:
            yield Member(long_name or name, start, at + BLOCK, size)
        elif kind in LINKS and split_name(long_name or name):
            stream.links += 1
        stream.advance(end)
        start, long_name, size_override = end, "", None


def first_content(data: bytes, position: int) -> int | None:
    """The position of the first nonzero byte in data that begins at `position`; None if all are zero."""
    return position + len(data) - len(data.lstrip(b"\0")) if data.strip(b"\0") else None


def read_sample(data: bytes | memoryview) -> tuple[str, dict[str, memoryview]]:
    """Key and {extension: bytes} of one sample, from the slice of a tar between its offsets; without copying.

    Raises TornTar.
    """
    key, parts, position = "", {}, 0
    data = memoryview(data)
    while position < len(data):
        found = _plain_member(data, position)
        if found is None:
            return _read_unusual_sample(data)
        name, start, size = found
        split = split_plain_name(name)
        if split is not None:
            key = key or split[0]
            parts[split[1]] = data[start : start + size]
        position = start + size + -size % BLOCK
    if not parts:
        raise TornTar("contains no members of samples")
    return key, parts


def _plain_member(data: memoryview, position: int) -> tuple[str, int, int] | None:
    """Name, first byte and size of a regular file with a short name and an octal size; None for anything else.

    Most members are of this form, and the full parser takes ten times as long.
    """
    header = bytes(data[position : position + BLOCK])
    if len(header) < BLOCK or header[156] not in b"0\0" or header[345] or header[257:262] != b"ustar":
        return None
    if header[135] not in b"\0 ":  # a size of twelve digits
        return None
    try:
        size, total = int(header[124:135], 8), int(header[148:154], 8)
        name = header[: header.index(0, 0, 100)].decode()
    except ValueError:
        return None
    whole = zlib.adler32(header[:148] + CHECKSUM_BLANK + header[156:], 0) & 0xFFFF  # see _parse_header
    start = position + BLOCK
    return (name, start, size) if whole == total % ADLER and 0 <= size <= len(data) - start else None


def _read_unusual_sample(data: memoryview) -> tuple[str, dict[str, memoryview]]:
    key, parts = "", {}
    for member in members(TarStream(io.BytesIO(data)), needs_marker=False):
        split = split_name(member.name)
        if split is not None:
            key = key or split[0]
            parts[split[1]] = data[member.data : member.data + member.size]
    if not parts:
        raise TornTar("contains no members of samples")
    return key, parts


def _read_header(stream: TarStream, needs_marker: bool) -> bytes | None:
    """The next header block, or None at the end of the archive."""
    header = b""
    while len(header) < BLOCK and (more := stream.file.read(BLOCK - len(header))):
        header += more
    if not header and not needs_marker:
        return None
    if stream.position == 0 and (kind := compressed_with(header)) and header[257:262] != b"ustar":
        raise TornTar(f"is compressed ({kind}), but samples can only be read from uncompressed tars", "unpack it")
    if not header:
        raise TornTar(f"ends at byte {stream.position} without the end-of-archive marker, so it was cut short")
    if len(header) < BLOCK:
        raise TornTar(f"ends at byte {stream.position + len(header)}, in the middle of a header")
    stream.position += BLOCK
    if stream.observe:
        stream.observe(header)
    return header if header.strip(b"\0") else None


def _parse_header(header: bytes, at: int) -> tuple[str, int, bytes]:
    # The low half of Adler-32 started at 0 is the sum of the bytes modulo 65521: the tar checksum at C speed.
    total = zlib.adler32(header[:148] + CHECKSUM_BLANK + header[156:], 0) & 0xFFFF
    if _number(header[148:156], at) % ADLER != total:
        raise TornTar(f"has no valid member header at byte {at}")
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:263] == b"ustar\0" else b""
    if prefix:
        name = prefix + b"/" + name
    return name.decode("utf-8", "surrogateescape"), _number(header[124:136], at), header[156:157]


def _number(field: bytes, at: int) -> int:
    if field[0] == 0x80:  # GNU and star write sizes beyond 8 GiB as a big-endian binary number
        return int.from_bytes(field[1:], "big")
    digits = field.split(b"\0", 1)[0].strip()
    if digits and not digits.isdigit():
        raise TornTar(f"has no valid member header at byte {at}")
    try:
        return int(digits or b"0", 8)
    except ValueError:
        raise TornTar(f"has no valid member header at byte {at}") from None


def _read_pax(record: bytes, at: int, shared: bool) -> tuple[str | None, int | None]:
    """The name and size that a pax record gives the next member, or with `shared` all members."""
    try:
        pax = parse_pax(record)
        size = size_in(pax)
    except ValueError:
        raise TornTar(f"has a damaged pax record at byte {at}") from None
    _refuse(unreadable(pax, shared), at)
    return pax.get("path"), size


def _refuse(reason: Unsupported | None, at: int) -> None:
    if reason is not None:
        raise TornTar(f"contains {reason[0]} at byte {at}, which is not supported", reason[1])


def _padded(position: int) -> int:
    return -(-position // BLOCK) * BLOCK
